//! Text out of a PDF, without letting the PDF take the machine.
//!
//! The parser underneath trusts what it reads: it inflates without a bound, follows forms that call themselves, fills tables for ranges
//! of four billion codes, and panics on what it does not know. So a document is looked at before it is read, in two steps:
//!
//! 1. **Bytes**: compressed streams are inflated into nothing, only counted; encryption, LZW and stacked filters are refused by name,
//!    and so are impossible widths in the table of objects.
//! 2. **Objects**: page trees must lead upwards, forms may call forms only so deep and so often, ranges must be small.
//!
//! Then each page is read on a thread of its own, whose stack is large and whose panic is an answer. The caller gets an answer within
//! [`TIME_MAX`] in any case; a thread that takes longer is left to finish alone.
//!
//! What this cannot promise is that no hostile document is left that costs too much: whoever needs that puts extraction into a process
//! of its own with limits on it, by the process adapter.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read},
    sync::mpsc,
    thread,
    time::Duration,
};

use flate2::read::{DeflateDecoder, ZlibDecoder};
use pdf_extract::{Dictionary, Document, Object, ObjectId, PlainTextOutput, Stream, output_doc_page};

use super::Failure;

/// How long a caller waits.
pub(super) const TIME_MAX: Duration = Duration::from_secs(30);
/// The longest text, in bytes.
pub(super) const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;

const PAGES_MAX: usize = 2_000;
/// Inflated size of one stream, and of all of them.
const STREAM_BYTES_MAX: u64 = 64 * 1024 * 1024;
const STREAMS_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Content to interpret on one page and in all, counting a form each time it is drawn.
const PAGE_WORK_MAX: u64 = 16 * 1024 * 1024;
const WORK_MAX: u64 = 64 * 1024 * 1024;
const FORM_DEPTH_MAX: usize = 8;
const PARENTS_MAX: usize = 64;
/// Codes in all ranges of the character maps and width tables.
const RANGE_CODES_MAX: u64 = 1_000_000;
/// Far above what a table of objects needs, and above what a width table of a font names in the same place.
const FIELD_BYTES_MAX: i64 = 1024 * 1024;
/// How far two names, or a name and its numbers, may stand apart.
const GAP_BYTES_MAX: usize = 512;
const STACK_BYTES: usize = 64 * 1024 * 1024;

/// The text of each page in order.
pub(super) fn pages(bytes: Vec<u8>) -> Result<Vec<String>, Failure> {
    inspect_bytes(&bytes)?;
    let (sender, receiver) = mpsc::sync_channel(1);
    let work = move || {
        let _ = sender.send(read(&bytes));
    };
    let thread = thread::Builder::new().name("pdf".to_owned()).stack_size(STACK_BYTES).spawn(work);
    let thread = thread.map_err(|error| failed(format!("no thread to read the document: {error}")))?;
    match receiver.recv_timeout(TIME_MAX) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => Err(failed(format!("reading the document took more than {} s", TIME_MAX.as_secs()))),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            // The panic's own words name source lines of a dependency; they help nobody who holds the document.
            let _ = thread.join();
            Err(failed("the document is damaged, or uses something this reader does not know"))
        }
    }
}

fn read(bytes: &[u8]) -> Result<Vec<String>, Failure> {
    let document = Document::load_mem(bytes)
        .map_err(|error| failed(format!("not a readable PDF: {}", error.to_string().chars().take(200).collect::<String>())))?;
    if document.is_encrypted() || document.was_encrypted() {
        return Err(encrypted());
    }
    inspect_objects(&document)?;
    let numbers: Vec<u32> = document.get_pages().keys().copied().collect();
    let mut room = TEXT_BYTES_MAX;
    let mut pages = Vec::with_capacity(numbers.len());
    for number in numbers {
        let mut page = Page { text: Vec::new(), room };
        let written = output_doc_page(&document, &mut PlainTextOutput::new(&mut page as &mut dyn io::Write), number);
        if page.room == 0 {
            return Err(failed(format!("the text is longer than {TEXT_BYTES_MAX} bytes")));
        }
        written.map_err(|error| {
            failed(format!("page {number} cannot be read: {}", error.to_string().chars().take(200).collect::<String>()))
        })?;
        room = page.room;
        pages.push(String::from_utf8_lossy(&page.text).trim().to_owned());
    }
    Ok(pages)
}

/// Collects a page as long as there is room.
struct Page {
    text: Vec<u8>,
    room: usize,
}

impl io::Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() >= self.room {
            self.room = 0;
            return Err(io::Error::other("no room left"));
        }
        self.room -= bytes.len();
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn failed(message: impl Into<String>) -> Failure {
    Failure::Failed(message.into())
}

fn encrypted() -> Failure {
    failed("the document is encrypted; remove the protection and send it again")
}

/// What can be told before anything is parsed.
fn inspect_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let names = unescaped(bytes);
    for at in find(&names, b"/Encrypt") {
        if names.get(at + 8).is_none_or(|next| !next.is_ascii_alphabetic()) {
            return Err(encrypted());
        }
    }
    for at in find(&names, b"/LZWDecode") {
        // The name may also be said in prose, where no delimiter follows.
        if names.get(at + 10).is_none_or(|next| is_space(*next) || b"/]>[%".contains(next)) {
            return Err(failed("the document uses LZW compression, which is not read here"));
        }
    }
    for at in find(&names, b"Decode") {
        let rest = &names[at + 6..];
        // Nobody writes this much between two filters, and looking further from each of many names would add up.
        let Some(second) = name_after(&rest[..rest.len().min(GAP_BYTES_MAX)]) else { continue };
        let first = &names[..at + 6];
        let armoured = first.ends_with(b"/ASCII85Decode") && second == b"FlateDecode";
        if second.ends_with(b"Decode") && !armoured && second != b"DCTDecode" {
            return Err(failed("the document stacks compression filters, which is not read here"));
        }
    }
    for at in find(&names, b"/W") {
        // The table of objects is read with these widths before anything can look at it: huge ones ask for memory, zeros never end.
        if let Some(widths) = three_numbers(&names[at + 2..names.len().min(at + 2 + GAP_BYTES_MAX)])
            && (widths.iter().any(|width| !(0..=FIELD_BYTES_MAX).contains(width)) || widths == [0; 3])
        {
            return Err(failed("the document's table of objects is broken"));
        }
    }
    let mut total = 0_u64;
    for at in find(bytes, b"stream") {
        if bytes[..at].ends_with(b"end") {
            continue;
        }
        let rest = &bytes[at + 6..];
        let rest = rest.strip_prefix(b"\r\n").or_else(|| rest.strip_prefix(b"\n")).or_else(|| rest.strip_prefix(b"\r")).unwrap_or(rest);
        let (mut length, mut work) = inflated(rest);
        if length == 0 && rest.iter().take(16).all(|byte| (b'!'..=b'z').contains(byte) || byte.is_ascii_whitespace()) {
            let plain = dearmoured(rest);
            let (inner_length, inner_work) = inflated(&plain);
            length = inner_length;
            work += inner_work.saturating_add(bytes_in(&plain));
        }
        // What was read counts as well: parts that overlap could make this look, which is meant to be cheap, the expensive one.
        total = total.saturating_add(length).saturating_add(work.saturating_mul(4));
        if length > STREAM_BYTES_MAX || total > STREAMS_BYTES_MAX {
            return Err(failed(format!(
                "a compressed part is larger than {STREAM_BYTES_MAX} bytes, or all are larger than {STREAMS_BYTES_MAX}"
            )));
        }
    }
    Ok(())
}

/// How long compressed data becomes, counted up to just past the bound, and how much of the data was read for that.
fn inflated(data: &[u8]) -> (u64, u64) {
    let counted = |reader: &mut dyn Read| {
        let (mut total, mut buffer) = (0, [0; 16 * 1024]);
        while total <= STREAM_BYTES_MAX {
            match reader.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(read) => total += u64::try_from(read).unwrap_or(u64::MAX),
            }
        }
        total
    };
    let mut zlib = ZlibDecoder::new(data);
    match counted(&mut zlib) {
        // The parser tries the same when the header does not convince it.
        0 => {
            let mut raw = DeflateDecoder::new(data.get(2..).unwrap_or_default());
            (counted(&mut raw), zlib.total_in().saturating_add(raw.total_in()))
        }
        length => (length, zlib.total_in()),
    }
}

fn bytes_in(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Undoes ASCII 85, as far as it goes.
fn dearmoured(data: &[u8]) -> Vec<u8> {
    let (mut bytes, mut group, mut filled) = (Vec::new(), 0_u32, 0);
    for &byte in data {
        match byte {
            b'z' if filled == 0 => bytes.extend([0; 4]),
            b'!'..=b'u' => {
                group = group.wrapping_mul(85).wrapping_add(u32::from(byte - b'!'));
                filled += 1;
                if filled == 5 {
                    bytes.extend(group.to_be_bytes());
                    (group, filled) = (0, 0);
                }
            }
            _ if byte.is_ascii_whitespace() => {}
            _ => break,
        }
    }
    // What is left of the last group cannot make the result longer in a way that matters.
    bytes
}

/// The bytes with `#xx` in names written out, so that no name hides.
fn unescaped(bytes: &[u8]) -> Vec<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'#', Some(high), Some(low)) => {
                plain.push(u8::try_from(high * 16 + low).unwrap_or(b'#'));
                at += 3;
            }
            _ => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    plain
}

/// Every place of a needle that does not overlap the one before.
fn find<'a>(bytes: &'a [u8], needle: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let mut from = 0;
    std::iter::from_fn(move || {
        let at = from + bytes.get(from..)?.windows(needle.len()).position(|window| window == needle)?;
        from = at + needle.len();
        Some(at)
    })
}

/// What comes after space and comments.
fn past_space(mut rest: &[u8]) -> &[u8] {
    loop {
        let start = rest.iter().position(|byte| !is_space(*byte)).unwrap_or(rest.len());
        rest = &rest[start..];
        if !rest.starts_with(b"%") {
            return rest;
        }
        let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')).unwrap_or(rest.len());
        rest = &rest[end..];
    }
}

fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0
}

/// The name that follows directly; when nothing but space and comments is in sight, what follows is unknown and taken for a filter.
fn name_after(rest: &[u8]) -> Option<&[u8]> {
    let next = past_space(rest);
    if next.is_empty() && rest.len() == GAP_BYTES_MAX {
        return Some(b"Decode");
    }
    let name = next.strip_prefix(b"/")?;
    let end = name.iter().position(|byte| is_space(*byte) || b"/[]<>(){}%".contains(byte)).unwrap_or(name.len());
    Some(&name[..end])
}

/// The whole numbers that an array begins with, if it begins with three; too large where they are out of sight.
fn three_numbers(rest: &[u8]) -> Option<[i64; 3]> {
    let next = past_space(rest);
    if next.is_empty() && rest.len() == GAP_BYTES_MAX {
        return Some([i64::MAX; 3]);
    }
    let mut rest = next.strip_prefix(b"[")?;
    let mut numbers = [0; 3];
    for number in &mut numbers {
        rest = past_space(rest);
        if rest.is_empty() {
            return Some([i64::MAX; 3]);
        }
        let end = rest.iter().position(|byte| !(byte.is_ascii_digit() || b"+-".contains(byte))).unwrap_or(rest.len());
        let digits = std::str::from_utf8(&rest[..end]).ok().filter(|digits| digits.bytes().any(|byte| byte.is_ascii_digit()))?;
        // Digits that are no number are too many digits.
        *number = digits.parse().unwrap_or(i64::MAX);
        rest = &rest[end..];
    }
    Some(numbers)
}

/// What can be told once objects are known, before any page is interpreted.
fn inspect_objects(document: &Document) -> Result<(), Failure> {
    let pages = document.get_pages();
    if pages.len() > PAGES_MAX {
        return Err(failed(format!("the document has more than {PAGES_MAX} pages")));
    }
    let mut codes = 0_u64;
    for object in document.objects.values() {
        codes = codes.saturating_add(codes_in(document, object));
        if codes > RANGE_CODES_MAX {
            return Err(failed(format!("the document's fonts map more than {RANGE_CODES_MAX} codes")));
        }
    }
    let mut forms = Forms { document, known: HashMap::new() };
    let mut total = 0_u64;
    for page in pages.values() {
        let parents = parents(document, *page)?;
        let content = document.get_page_content(*page).unwrap_or_default();
        let resources = parents.iter().find_map(|dict| dictionary(document, dict, b"Resources"));
        let work = forms.work(&content, resources, FORM_DEPTH_MAX)?;
        total = total.saturating_add(work);
        if work > PAGE_WORK_MAX || total > WORK_MAX {
            return Err(failed("the document draws more than this reader interprets"));
        }
    }
    Ok(())
}

/// A page and what is above it in the tree.
fn parents(document: &Document, page: ObjectId) -> Result<Vec<&Dictionary>, Failure> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    let mut next = Some(page);
    while let Some(id) = next {
        if !seen.insert(id) || seen.len() > PARENTS_MAX {
            return Err(failed("the document's page tree is broken"));
        }
        let Ok(dict) = document.get_dictionary(id) else { break };
        found.push(dict);
        next = dict.get(b"Parent").and_then(Object::as_reference).ok();
    }
    Ok(found)
}

/// Counts the work of drawing forms, which may draw other forms.
struct Forms<'a> {
    document: &'a Document,
    known: HashMap<*const Stream, (usize, u64)>,
}

impl<'a> Forms<'a> {
    /// Bytes to interpret for a content stream, as if each drawing drew the most expensive of the forms at hand.
    fn work(&mut self, content: &[u8], resources: Option<&'a Dictionary>, depth: usize) -> Result<u64, Failure> {
        let own = u64::try_from(content.len()).unwrap_or(u64::MAX);
        let draws = u64::try_from(find(content, b"Do").count()).unwrap_or(u64::MAX);
        let forms = resources.and_then(|resources| dictionary(self.document, resources, b"XObject"));
        if draws == 0 {
            return Ok(own);
        }
        let mut most = 0;
        for (_, object) in forms.into_iter().flat_map(Dictionary::iter) {
            let Ok((_, Object::Stream(form))) = self.document.dereference(object) else {
                continue;
            };
            most = most.max(self.form(form, resources, depth)?);
        }
        Ok(own.saturating_add(draws.saturating_mul(most)))
    }

    fn form(&mut self, form: &'a Stream, inherited: Option<&'a Dictionary>, depth: usize) -> Result<u64, Failure> {
        let key = std::ptr::from_ref(form);
        // A form known from as deep or deeper cannot be cheaper from here.
        if let Some((_, work)) = self.known.get(&key).filter(|(known, _)| *known <= depth) {
            return Ok(*work);
        }
        let Some(left) = depth.checked_sub(1) else {
            return Err(failed("the document nests drawings too deep, or in a circle"));
        };
        let content = form.get_plain_content().unwrap_or_else(|_| form.content.clone());
        let image = form.dict.get(b"Subtype").and_then(Object::as_name).is_ok_and(|name| name == b"Image");
        let work = if image && !form.dict.has(b"Resources") && find(&content, b"Do").next().is_none() {
            // Interpreting stops at the first byte that is no operator, which in a picture is soon.
            u64::try_from(content.len() / 16).unwrap_or(u64::MAX)
        } else {
            let resources = dictionary(self.document, &form.dict, b"Resources").or(inherited);
            self.work(&content, resources, left)?
        };
        self.known.insert(key, (depth, work));
        Ok(work)
    }
}

fn dictionary<'a>(document: &'a Document, dict: &'a Dictionary, key: &[u8]) -> Option<&'a Dictionary> {
    document.dereference(dict.get(key).ok()?).ok()?.1.as_dict().ok()
}

/// How many codes the width tables and character maps in an object would fill.
fn codes_in(document: &Document, object: &Object) -> u64 {
    let mut codes = 0_u64;
    let mut waiting = vec![object];
    while let Some(object) = waiting.pop() {
        let dict = match object {
            Object::Array(items) => {
                waiting.extend(items);
                continue;
            }
            Object::Dictionary(dict) => dict,
            Object::Stream(stream) => {
                let image = stream.dict.get(b"Subtype").and_then(Object::as_name).is_ok_and(|name| name == b"Image");
                if !image && let Ok(content) = stream.get_plain_content() {
                    codes = codes.saturating_add(mapped_codes(&content));
                }
                &stream.dict
            }
            Object::Null
            | Object::Boolean(_)
            | Object::Integer(_)
            | Object::Real(_)
            | Object::Name(_)
            | Object::String(..)
            | Object::Reference(_) => continue,
        };
        if let Ok(widths) = dict.get(b"W").and_then(|widths| document.dereference(widths)).and_then(|(_, widths)| widths.as_array()) {
            codes = codes.saturating_add(width_codes(document, widths));
        }
        waiting.extend(dict.iter().map(|(_, value)| value));
    }
    codes
}

/// `first [w ...]` sets one code for each width, `first last w` all between.
fn width_codes(document: &Document, widths: &[Object]) -> u64 {
    let number = |object: &Object| document.dereference(object).ok().and_then(|(_, object)| object.as_float().ok());
    let mut codes = 0_u64;
    let mut at = 0;
    while at + 1 < widths.len() {
        let is_list = document.dereference(&widths[at + 1]).is_ok_and(|(_, object)| object.as_array().is_ok());
        if !is_list && let (Some(first), Some(last)) = (number(&widths[at]), number(&widths[at + 1])) {
            // Rounded to what matters: whether the range is far too large.
            let span = f64::from(last - first).clamp(0.0, 1e12);
            codes = codes.saturating_add(Duration::from_secs_f64(span).as_secs());
        }
        at += if is_list { 2 } else { 3 };
    }
    codes
}

/// Codes in the ranges of a character map: `<first> <last> <to>` or `<first> <last> [...]` between `beginbfrange` and `endbfrange`.
fn mapped_codes(content: &[u8]) -> u64 {
    let mut codes = 0_u64;
    for at in find(content, b"beginbfrange") {
        let section = &content[at..];
        let section = &section[..find(section, b"endbfrange").next().unwrap_or(section.len())];
        if section.contains(&b'(') {
            return u64::MAX;
        }
        let (mut numbers, mut within_list) = (Vec::new(), false);
        let mut rest = section;
        while let Some(start) = rest.iter().position(|byte| matches!(byte, b'<' | b'[' | b']')) {
            let mark = rest[start];
            rest = &rest[start + 1..];
            if mark == b'<' {
                let end = rest.iter().position(|byte| *byte == b'>').unwrap_or(rest.len());
                let code = rest[..end]
                    .iter()
                    .filter_map(|byte| char::from(*byte).to_digit(16))
                    .fold(0_u64, |code, digit| code.wrapping_mul(16).wrapping_add(u64::from(digit)));
                rest = &rest[end..];
                if !within_list {
                    numbers.push(code);
                }
            } else {
                within_list = mark == b'[';
                if within_list {
                    numbers.push(0);
                }
            }
            if numbers.len() == 3 {
                codes = codes.saturating_add(numbers[1].saturating_sub(numbers[0])).saturating_add(1);
                numbers.clear();
            }
        }
    }
    codes
}
