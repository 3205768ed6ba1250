//! What a capability costs per unit, in exact decimals (AITP-10).

use std::{fmt, str::FromStr};

use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer, Serialize, de};

/// A three-letter currency code, upper case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Currency([u8; 3]);

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.0).unwrap_or("???"))
    }
}

impl FromStr for Currency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.as_bytes() {
            &[a, b, c] if [a, b, c].iter().all(u8::is_ascii_uppercase) => Ok(Self([a, b, c])),
            _ => Err(format!("`{}` is not a currency: expected three capital letters such as USD", super::printable(text, 20))),
        }
    }
}

impl Serialize for Currency {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The price of one unit of work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Amount per unit, never negative, at most a million; written as a string so that no digit is lost.
    #[serde(deserialize_with = "amount")]
    #[serde(serialize_with = "rust_decimal::serde::str::serialize")]
    pub amount: Decimal,
    /// The currency of `amount`.
    pub currency: Currency,
    /// What is counted: `request`, `document`, `token`, ... At most 32 characters.
    #[serde(default = "unit_default", deserialize_with = "unit")]
    pub unit: String,
}

/// The largest amount per unit that a definition or a record may name.
const AMOUNT_MAX: Decimal = Decimal::from_parts(1_000_000, 0, 0, false, 0);

impl Price {
    /// What `units` of this cost.
    pub fn times(&self, units: Decimal) -> Decimal {
        self.amount.saturating_mul(units)
    }
}

fn unit_default() -> String {
    "request".to_owned()
}

fn amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Decimal, D::Error> {
    let text = String::deserialize(deserializer)?;
    let amount = Decimal::from_str_exact(&text)
        .map_err(|_| de::Error::custom(format!("`{}` is not a decimal amount such as \"0.001\"", super::printable(&text, 40))))?;
    if amount.is_sign_negative() && !amount.is_zero() {
        return Err(de::Error::custom("a price cannot be negative"));
    }
    if amount > AMOUNT_MAX {
        return Err(de::Error::custom("a price is at most 1000000 per unit"));
    }
    Ok(amount)
}

fn unit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() || text.chars().count() > 32 || text.chars().any(char::is_control) {
        return Err(de::Error::custom("a price's unit has 1 to 32 printable characters"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_keep_every_digit() {
        let price: Price = serde_json::from_str(r#"{"amount":"0.00100","currency":"USD","unit":"document"}"#).expect("valid");
        assert_eq!(price.times(Decimal::from(3)).to_string(), "0.00300");
        assert!(serde_json::to_string(&price).expect("writes").contains(r#""0.00100""#));
    }

    #[test]
    fn negative_absurd_and_imprecise_prices_are_refused() {
        for amount in [r#""-1""#, r#""1e9""#, r#""99999999""#, "0.1", r#""NaN""#] {
            let text = format!(r#"{{"amount":{amount},"currency":"USD"}}"#);
            assert!(serde_json::from_str::<Price>(&text).is_err(), "{text}");
        }
        assert!(serde_json::from_str::<Price>(r#"{"amount":"1","currency":"usd"}"#).is_err());
    }
}
