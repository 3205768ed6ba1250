//! Which currencies there are, so that a budget in one that nobody uses is refused when it is written and not when nobody answers.
//!
//! The active codes of ISO 4217. A price in a record is not held to this list: another node may know a newer one.

use crate::model::Currency;

/// The active alphabetic codes of ISO 4217, in alphabetical order.
const CODES: &str = "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF CHW \
    CLF CLP CNY COP COU CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS \
    INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK \
    MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD \
    SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD USN UYI UYU UYW UZS VED VES VND VUV WST XAD XAF XAG XAU XBA XBB \
    XBC XBD XCD XCG XDR XOF XPD XPF XPT XSU XUA YER ZAR ZMW ZWG";

/// The currency with this code.
pub(super) fn find(code: &str) -> Option<Currency> {
    code.parse().ok().filter(|_| known().any(|known| known == code))
}

/// Every code.
pub(super) fn known() -> impl Iterator<Item = &'static str> {
    CODES.split_ascii_whitespace()
}

/// What amounts are in where nothing is said (AITP 2.2).
pub(in crate::proto::task) fn usual() -> Option<Currency> {
    find("USD")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_order_and_every_code_is_one() {
        assert!(known().is_sorted_by(|a, b| a < b));
        assert!(known().all(|code| find(code).is_some_and(|currency| currency.to_string() == code)));
        assert!(usual().is_some() && find("ZZZ").is_none() && find("usd").is_none() && find("").is_none());
    }
}
