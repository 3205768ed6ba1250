//! The agent that turns a document into text.
//!
//! A document arrives as a `data:` URL: a PDF, Markdown or plain text. A `file:` URL is read only below what
//! [`Settings::file_allow`] names, and the name is resolved before it is compared: a symbolic link inside an allowed directory does not
//! lead out of it. Nothing is fetched; an `https:` URL is refused. Markdown and text pass through as they are.
//!
//! AITP's own example calls the document `paper_pdf_url`, may ask for the first `max_pages` of it, and takes the text as `extracted_text`;
//! who asks in these words is answered in them too.
//!
//! Invariants: at most [`INPUT_BYTES_MAX`] in and 4 MiB of text out; a hostile PDF costs a bounded amount or is refused;
//! the text is returned as data and never looked at.
//!
//! Left to others: pictures of text. A scanned document has no text to extract, and the failure says so.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose};
use serde_json::{Value, json};

use super::{Builtin, Failure, Offer, Output, Settings, count, pdf, string};

/// The `pdf_text_extraction` agent.
pub const AGENT: Builtin =
    Builtin { name: "pdf_text_extraction", description: "Text of a PDF, Markdown or text document", capabilities: offers, run };

/// The largest document, in bytes.
pub const INPUT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The longest URL: the largest document in base64 fits, percent escapes shorten what does.
const URL_BYTES_MAX: usize = INPUT_BYTES_MAX / 3 * 4 + 1024;
/// More pages than any document has that is small enough.
const PAGES_MAX: usize = 100_000;
/// What this agent calls the document.
const DOCUMENT: &str = "document";
/// What AITP's example calls it.
const PAPER: &str = "paper_pdf_url";

fn offers() -> Vec<Offer> {
    vec![Offer {
        id: "pdf_text_extraction",
        version: "1.0.0",
        description: "The text of a document given as a data: URL (application/pdf, text/markdown, text/plain) or an allowed file: URL",
        input_schema: json!({
            "type": "object",
            "properties": {
                "document": {"type": "string", "minLength": 1, "maxLength": URL_BYTES_MAX},
                "paper_pdf_url": {"type": "string", "minLength": 1, "maxLength": URL_BYTES_MAX},
                "max_pages": {"type": "integer", "minimum": 1, "maximum": PAGES_MAX},
            },
            "oneOf": [{"required": ["document"]}, {"required": ["paper_pdf_url"]}],
            "additionalProperties": false,
        }),
        output_schema: json!({
            "type": "object",
            "required": ["text", "pages", "characters"],
            "properties": {
                "text": {"type": "string"},
                "pages": {"type": "integer", "minimum": 1},
                "characters": {"type": "integer", "minimum": 0},
                "extracted_text": {"type": "string"},
            },
            "additionalProperties": false,
        }),
    }]
}

fn run(_capability: &str, input: &Value, settings: &Settings) -> Result<Output, Failure> {
    if input.get(DOCUMENT).is_some() && input.get(PAPER).is_some() {
        return Err(bad(format!("stands beside {PAPER}; give one of them")));
    }
    let key = if input.get(PAPER).is_some() { PAPER } else { DOCUMENT };
    let url = string(input, key, URL_BYTES_MAX)?;
    let pages_max = count(input, "max_pages", PAGES_MAX, PAGES_MAX)?;
    let (text, pages) = read(url, pages_max, settings).map_err(|failure| match failure {
        Failure::BadInput { message, .. } => Failure::bad(&format!("/{key}"), message),
        failure @ (Failure::Forbidden(_) | Failure::Failed(_)) => failure,
    })?;
    let mut value = json!({"characters": text.chars().count(), "pages": pages});
    if key == PAPER {
        value["extracted_text"] = text.clone().into();
    }
    value["text"] = text.into();
    Ok(Output::of(value))
}

/// The text of the first pages behind a URL, and how many they are.
fn read(url: &str, pages_max: usize, settings: &Settings) -> Result<(String, usize), Failure> {
    let (bytes, is_pdf) = load(url, settings)?;
    if is_pdf {
        let mut pages = pdf::pages(bytes)?;
        pages.truncate(pages_max);
        let text = pages.join("\n\n");
        if text.trim().is_empty() {
            let message = "the document has no text; if it is a scan, it needs character recognition first";
            return Err(Failure::Failed(message.to_owned()));
        }
        Ok((text, pages.len()))
    } else {
        let text =
            String::from_utf8(bytes).map_err(|error| bad(format!("expected UTF-8: byte {} is not", error.utf8_error().valid_up_to())))?;
        if text.len() > pdf::TEXT_BYTES_MAX {
            return Err(Failure::Failed(format!("the text is longer than {} bytes", pdf::TEXT_BYTES_MAX)));
        }
        Ok((text, 1))
    }
}

fn bad(message: impl Into<String>) -> Failure {
    Failure::bad("/document", message)
}

/// The bytes behind a URL, and whether they are a PDF.
fn load(url: &str, settings: &Settings) -> Result<(Vec<u8>, bool), Failure> {
    let (scheme, rest) = url.split_once(':').ok_or_else(|| bad("expected a data: or file: URL"))?;
    match scheme.to_ascii_lowercase().as_str() {
        "data" => data(rest),
        "file" => file(rest, &settings.file_allow),
        "http" | "https" => Err(Failure::Forbidden(refused_fetch(rest, &settings.https_allow))),
        _ => Err(bad("expected a data: or file: URL")),
    }
}

fn refused_fetch(rest: &str, allowed: &[String]) -> String {
    let authority = rest.trim_start_matches('/').split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default().split(':').next().unwrap_or_default();
    let known = allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(host));
    let why = if known { "its host is allowed, but this agent does not fetch" } else { "this agent does not fetch" };
    format!("{why}; send the document as a data: URL")
}

fn data(rest: &str) -> Result<(Vec<u8>, bool), Failure> {
    let (head, body) = rest.split_once(',').ok_or_else(|| bad("a data: URL has a comma between its type and its content"))?;
    let mut parts = head.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
    let is_pdf = match media_type.as_str() {
        "application/pdf" => true,
        "text/plain" | "text/markdown" | "" => false,
        _ => return Err(bad("expected application/pdf, text/markdown or text/plain")),
    };
    let bytes = if parts.any(|part| part.eq_ignore_ascii_case("base64")) {
        let body: Vec<u8> = body.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let unpadded = body.trim_ascii_end().strip_suffix(b"==").or_else(|| body.strip_suffix(b"=")).unwrap_or(&body);
        general_purpose::STANDARD_NO_PAD.decode(unpadded).map_err(|error| bad(format!("broken base64: {error}")))?
    } else {
        crate::model::percent_decoded(body).ok_or_else(|| bad("a percent escape is broken"))?
    };
    within(bytes, is_pdf)
}

fn within(bytes: Vec<u8>, is_pdf: bool) -> Result<(Vec<u8>, bool), Failure> {
    if bytes.len() > INPUT_BYTES_MAX {
        Err(bad(format!("the document is larger than {INPUT_BYTES_MAX} bytes")))
    } else {
        Ok((bytes, is_pdf))
    }
}

fn file(rest: &str, allowed: &[PathBuf]) -> Result<(Vec<u8>, bool), Failure> {
    // One answer for what is not there and what is not allowed: the difference would tell a stranger what exists.
    let forbidden = || Failure::Forbidden("this file is not among those the agent may read".to_owned());
    let path = match rest.strip_prefix("//") {
        Some(rest) => rest.strip_prefix("localhost").unwrap_or(rest),
        None => rest,
    };
    if !path.starts_with('/') {
        return Err(bad("a file: URL has an absolute path and no host"));
    }
    let path =
        crate::model::percent_decoded(path).and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(|| bad("the path is not UTF-8"))?;
    let path = admitted(Path::new(&path), allowed).ok_or_else(forbidden)?;
    // Asked before opening: opening a pipe would wait for its other end.
    if !path.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(forbidden());
    }
    let file = File::open(&path).map_err(|error| Failure::Failed(format!("the file cannot be opened: {}", error.kind())))?;
    // Asked again, so that a directory replaced by a link in between is noticed.
    if admitted(&path, allowed).as_deref() != Some(path.as_path()) {
        return Err(forbidden());
    }
    let mut bytes = Vec::new();
    let max = u64::try_from(INPUT_BYTES_MAX).unwrap_or(u64::MAX);
    file.take(max + 1).read_to_end(&mut bytes).map_err(|error| Failure::Failed(format!("the file cannot be read: {}", error.kind())))?;
    let is_pdf = bytes.starts_with(b"%PDF-");
    within(bytes, is_pdf)
}

/// The path without links, if it lies within what is allowed.
fn admitted(path: &Path, allowed: &[PathBuf]) -> Option<PathBuf> {
    let path = path.canonicalize().ok()?;
    allowed.iter().filter_map(|allowed| allowed.canonicalize().ok()).any(|allowed| path.starts_with(allowed)).then_some(path)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The sample document as a URL.
    pub(in crate::agents::builtin) fn sample_url() -> String {
        pdf_url(include_bytes!("assets/sample.pdf"))
    }

    fn pdf_url(bytes: &[u8]) -> String {
        format!("data:application/pdf;base64,{}", general_purpose::STANDARD.encode(bytes))
    }

    fn extracted(url: &str, settings: &Settings) -> Result<Value, Failure> {
        run("pdf_text_extraction", &json!({"document": url}), settings).map(|output| output.value)
    }

    fn from_pdf(bytes: &[u8]) -> Result<Value, Failure> {
        extracted(&pdf_url(bytes), &Settings::default())
    }

    /// A PDF of the given objects, the first of which is the catalog.
    fn assembled(objects: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = b"%PDF-1.4\n".to_vec();
        let mut offsets = Vec::new();
        for (index, object) in objects.iter().enumerate() {
            offsets.push(bytes.len());
            bytes.extend(format!("{} 0 obj\n", index + 1).bytes());
            bytes.extend(object);
            bytes.extend(b"\nendobj\n");
        }
        let start = bytes.len();
        bytes.extend(format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1).bytes());
        offsets.iter().for_each(|offset| bytes.extend(format!("{offset:010} 00000 n \n").bytes()));
        bytes.extend(format!("trailer\n<< /Size {} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n", objects.len() + 1).bytes());
        bytes
    }

    fn stream(dict: &str, content: &[u8]) -> Vec<u8> {
        [format!("<< {dict} /Length {} >>\nstream\n", content.len()).as_bytes(), content, b"\nendstream"].concat()
    }

    /// A PDF of one page whose content, page entries and further objects (from number 6) are given.
    fn page(content: Vec<u8>, resources: &str, entries: &str, more: &[Vec<u8>]) -> Vec<u8> {
        let mut objects = vec![
            b"<< /Type /Catalog /Pages 2 0 R >>".to_vec(),
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>".to_vec(),
            format!("<< /Type /Page {entries} /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> {resources} >> >>").into_bytes(),
            content,
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>".to_vec(),
        ];
        objects.extend_from_slice(more);
        assembled(&objects)
    }

    const ENTRIES: &str = "/Parent 2 0 R /MediaBox [0 0 612 792]";

    fn simple(text: &str) -> Vec<u8> {
        page(stream("", format!("BT /F1 12 Tf 72 720 Td ({text}) Tj ET").as_bytes()), "", ENTRIES, &[])
    }

    fn deflated(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::read::ZlibEncoder::new(data, flate2::Compression::best());
        let mut bytes = Vec::new();
        encoder.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn failure(bytes: &[u8]) -> String {
        match from_pdf(bytes) {
            Err(Failure::Failed(message)) => message,
            other => panic!("expected a failure: {other:?}"),
        }
    }

    #[test]
    fn a_small_pdf_gives_its_text() {
        let value = from_pdf(&simple("Hello mesh")).unwrap();
        assert_eq!(value, json!({"text": "Hello mesh", "pages": 1, "characters": 10}));
    }

    #[test]
    fn a_compressed_page_gives_its_text() {
        let content = deflated(b"BT /F1 12 Tf 72 720 Td (Packed words) Tj ET");
        let value = from_pdf(&page(stream("/Filter /FlateDecode", &content), "", ENTRIES, &[])).unwrap();
        assert_eq!(value["text"], "Packed words");
    }

    #[test]
    fn the_sample_document_and_its_twin_say_the_same() {
        let value = extracted(&sample_url(), &Settings::default()).unwrap();
        assert!(value["pages"].as_u64().unwrap() > 1);
        let bare = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
        let twin = bare(include_str!("assets/sample.md"));
        let found = bare(value["text"].as_str().unwrap());
        assert_eq!(found, twin);
    }

    /// AITP-3: the draft's own example asks and is answered in its own words.
    #[test]
    fn the_drafts_words_are_understood() {
        let asked = |input: Value| run("pdf_text_extraction", &input, &Settings::default()).map(|output| output.value);
        let all = asked(json!({"paper_pdf_url": sample_url(), "max_pages": 50})).unwrap();
        assert_eq!(
            (&all["extracted_text"], &all["pages"]),
            (&all["text"], &extracted(&sample_url(), &Settings::default()).unwrap()["pages"])
        );
        let first = asked(json!({"document": sample_url(), "max_pages": 1})).unwrap();
        assert_eq!((&first["pages"], first.get("extracted_text")), (&json!(1), None));
        assert!(
            all["text"].as_str().unwrap().starts_with(first["text"].as_str().unwrap())
                && first["characters"].as_u64() < all["characters"].as_u64()
        );
    }

    #[test]
    fn a_document_is_named_once_and_its_faults_by_its_name() {
        let at = |input: Value| match run("pdf_text_extraction", &input, &Settings::default()) {
            Err(Failure::BadInput { path, .. }) => path,
            other => panic!("expected bad input: {other:?}"),
        };
        assert_eq!(at(json!({"paper_pdf_url": "nothing"})), "/paper_pdf_url");
        assert_eq!(at(json!({"paper_pdf_url": "data:,x", "document": "data:,x"})), "/document");
        assert_eq!(at(json!({"document": "data:,x", "max_pages": 0})), "/max_pages");
    }

    #[test]
    fn markdown_and_text_pass_through() {
        let plain = extracted("data:text/plain;charset=utf-8,caf%C3%A9%20%24%7Bx%7D", &Settings::default()).unwrap();
        assert_eq!(plain, json!({"text": "café ${x}", "pages": 1, "characters": 9}));
        let markdown = format!("data:text/markdown;base64,{}", general_purpose::STANDARD.encode("# Title\n\n- one"));
        assert_eq!(extracted(&markdown, &Settings::default()).unwrap()["text"], "# Title\n\n- one");
    }

    #[test]
    fn broken_urls_are_bad_input() {
        for url in [
            "nothing",
            "data:application/pdf;base64",
            "data:image/png;base64,AAAA",
            "data:text/plain;base64,!!",
            "data:,%zz",
            "data:,%ff",
            "ftp://x/y",
            "file://host/x",
            "file:x",
        ] {
            assert!(matches!(extracted(url, &Settings::default()), Err(Failure::BadInput { .. })), "{url}");
        }
    }

    #[test]
    fn nothing_is_fetched() {
        let settings = Settings { https_allow: vec!["example.com".to_owned()], ..Settings::default() };
        for url in ["https://example.com/a.pdf", "https://other.example/a.pdf", "HTTP://127.0.0.1/"] {
            assert!(matches!(extracted(url, &settings), Err(Failure::Forbidden(_))), "{url}");
        }
    }

    #[test]
    fn files_are_read_only_where_allowed() {
        let directory = tempfile::tempdir().unwrap();
        let (inside, outside) = (directory.path().join("in side"), directory.path().join("outside"));
        std::fs::create_dir_all(&inside).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::write(inside.join("a.pdf"), simple("From disk")).unwrap();
        std::fs::write(outside.join("secret.md"), "secret").unwrap();
        let url = |path: &Path| format!("file://{}", path.display().to_string().replace(' ', "%20"));
        let settings = Settings { file_allow: vec![inside.clone()], ..Settings::default() };
        assert_eq!(extracted(&url(&inside.join("a.pdf")), &settings).unwrap()["text"], "From disk");
        let forbidden = |path: &Path, settings: &Settings| matches!(extracted(&url(path), settings), Err(Failure::Forbidden(_)));
        assert!(forbidden(&inside.join("a.pdf"), &Settings::default()));
        assert!(forbidden(&outside.join("secret.md"), &settings));
        assert!(forbidden(&inside.join("../outside/secret.md"), &settings));
        assert!(forbidden(&inside.join("missing.md"), &settings) && forbidden(&inside, &settings));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(outside.join("secret.md"), inside.join("link.md")).unwrap();
            assert!(forbidden(&inside.join("link.md"), &settings));
        }
    }

    #[test]
    fn documents_that_are_too_large_are_bad_input() {
        let url = pdf_url(&vec![b'x'; INPUT_BYTES_MAX + 1]);
        assert!(matches!(extracted(&url, &Settings::default()), Err(Failure::BadInput { .. })));
    }

    #[test]
    fn what_is_no_pdf_fails_clearly() {
        assert!(failure(b"hello").contains("not a readable PDF"));
        assert!(failure(b"%PDF-1.4\n%%EOF").contains("not a readable PDF"));
    }

    #[test]
    fn a_page_without_text_says_that_it_may_be_a_scan() {
        assert!(failure(&page(stream("", b"0 0 m 10 10 l S"), "", ENTRIES, &[])).contains("scan"));
    }

    #[test]
    fn an_encrypted_document_says_so() {
        let plain = String::from_utf8(simple("x")).unwrap();
        for name in ["/Encrypt", "/Encry#70t"] {
            let locked = plain.replace("/Root 1 0 R", &format!("/Root 1 0 R {name} << /Filter /Standard >>"));
            assert!(failure(locked.as_bytes()).contains("encrypted"));
        }
    }

    #[test]
    fn a_document_on_which_the_reader_panics_is_an_answer() {
        let no_box = page(stream("", b"BT /F1 12 Tf (x) Tj ET"), "", "/Parent 2 0 R", &[]);
        assert!(failure(&no_box).contains("damaged"));
        let no_font = page(stream("", b"BT /F9 12 Tf (x) Tj ET"), "", ENTRIES, &[]);
        assert!(failure(&no_font).contains("damaged"));
    }

    #[test]
    fn a_compressed_bomb_is_refused_without_unpacking_it() {
        let bomb = deflated(&vec![0; 80 * 1024 * 1024]);
        assert!(failure(&page(stream("/Filter /FlateDecode", &bomb), "", ENTRIES, &[])).contains("compressed part"));
        let stacked = stream("/Filter [/FlateDecode %x\n /Fl#61teDecode]", &deflated(&bomb));
        assert!(failure(&page(stacked, "", ENTRIES, &[])).contains("stacks"));
        assert!(failure(&page(stream("/Filter /LZWDecode", b"x"), "", ENTRIES, &[])).contains("LZW"));
    }

    #[test]
    fn a_table_of_objects_with_impossible_widths_is_refused() {
        for widths in ["[0 0 0]", "[1 %c\n 99999999999 1]", "[1 2 -1]", "[1 2 99999999999999999999999]"] {
            let table = stream(&format!("/Type /XRef /Size 9223372036854775807 /W {widths} /Root 1 0 R"), b"x");
            let document = [b"%PDF-1.5\n1 0 obj\n".as_slice(), &table, b"\nendobj\nstartxref\n9\n%%EOF\n"].concat();
            assert!(failure(&document).contains("table of objects"), "{widths}");
        }
    }

    #[test]
    fn looking_at_hostile_bytes_is_cheap() {
        let started = std::time::Instant::now();
        let empty_blocks = [b"\x78\x9c".as_slice(), &[0, 0, 0, 0xff, 0xff].repeat(100)].concat();
        for part in [
            b"stream\n".to_vec(),
            b"stream\nabc".to_vec(),
            [b"stream\n".as_slice(), &empty_blocks].concat(),
            b"/ADecode %".to_vec(),
            b"/W[".to_vec(),
        ] {
            let bytes = [b"%PDF-1.4\n".to_vec(), part.repeat(2 * 1024 * 1024 / part.len())].concat();
            assert!(from_pdf(&bytes).is_err());
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(30), "{:?}", started.elapsed());
    }

    #[test]
    fn a_page_tree_that_runs_in_a_circle_is_refused() {
        assert!(failure(&page(stream("", b"BT ET"), "", "/Parent 3 0 R", &[])).contains("page tree"));
    }

    #[test]
    fn forms_that_draw_themselves_or_double_are_refused() {
        let form = |number: usize| {
            stream(&format!("/Type /XObject /Subtype /Form /Resources << /XObject << /X {number} 0 R >> >>"), b"/X Do /X Do")
        };
        let itself = page(stream("", b"/X Do"), "/XObject << /X 6 0 R >>", ENTRIES, &[form(6)]);
        assert!(failure(&itself).contains("too deep"));
        let bare = page(stream("", b"/X Do"), "/XObject << /X 6 0 R >>", ENTRIES, &[stream("/Subtype /Form", b"/X Do")]);
        assert!(failure(&bare).contains("too deep"));
        let many = b"/X Do ".repeat(1000);
        let wide = |number: usize| stream(&format!("/Subtype /Form /Resources << /XObject << /X {number} 0 R >> >>"), &many);
        let doubling = page(stream("", &many), "/XObject << /X 6 0 R >>", ENTRIES, &[wide(7), wide(8), stream("/Subtype /Form", b"0 g")]);
        assert!(failure(&doubling).contains("draws more"));
    }

    #[test]
    fn fonts_with_endless_ranges_are_refused() {
        let map = stream("", b"1 beginbfrange <00000000> <FFFFFFFF> <0041> endbfrange");
        assert!(failure(&page(stream("", b"BT ET"), "", ENTRIES, &[map])).contains("codes"));
        let widths = b"<< /Type /Font /W [5 [500] 0 4000000000 500] >>".to_vec();
        assert!(failure(&page(stream("", b"BT ET"), "", ENTRIES, &[widths])).contains("codes"));
    }
}
