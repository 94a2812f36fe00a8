//! What a fuzzer runs: the properties that hold for any bytes of a peer.

use std::{collections::BTreeMap, sync::Arc};

use bytes::{Bytes, BytesMut};

use super::{
    codec::{self, Bind, CutError, Execute, Format, Frame, Named, Parse},
    copy::{CopyColumns, CopyMasker},
    deny,
    mask::{Column, Masker, Plan, Rule},
    names::parse_list,
    startup::{First, Login},
};
use crate::{
    action::{Detector, MaskSpec, MaskWith},
    mask::{Hits, KnownSecrets, MaskSet},
    sql::{CopyDirection, CopyFormat, CopyInfo, CopySource},
    wire::Rewrite,
};

const CAP: usize = 4096;

/// Reads a `search_path`: what is read, quoted, is read again as the same names.
pub fn path(text: &str) {
    let Some(names) = parse_list(text) else { return };
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{}\"", name.replace('"', "\"\""))).collect();
    assert_eq!(parse_list(&quoted.join(", ")), Some(names));
}

/// Cuts a stream into frames: however it is split, the same frames come, they are its bytes, and the same error ends it.
pub fn frames(data: &[u8]) {
    let (whole, error, rest) = cut_all(&[data]);
    let joined: Vec<u8> = whole.iter().flat_map(|frame| frame.bytes().to_vec()).collect();
    assert!(data.starts_with(&joined), "frames are the bytes of the stream");
    assert_eq!(joined.len() + rest, data.len(), "no byte is lost");
    assert!(whole.iter().all(|frame| frame.bytes().len() <= CAP + 1), "no frame is over the cap");
    let step = usize::from(data.first().copied().unwrap_or(0)) % 7 + 1;
    let pieces: Vec<&[u8]> = data.chunks(step).collect();
    let (split, split_error, _) = cut_all(&pieces);
    assert_eq!((&whole, error), (&split, split_error), "a split changes nothing");
    for frame in &whole {
        body(frame);
    }
}

fn cut_all(pieces: &[&[u8]]) -> (Vec<Frame>, Option<CutError>, usize) {
    let (mut input, mut frames) = (BytesMut::new(), Vec::new());
    for (i, piece) in pieces.iter().enumerate() {
        input.extend_from_slice(piece);
        loop {
            match codec::cut(&mut input, |_| CAP) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => {
                    let unread: usize = pieces[i + 1..].iter().map(|piece| piece.len()).sum();
                    return (frames, Some(error), input.len() + unread);
                }
            }
        }
    }
    (frames, None, input.len())
}

/// Reads a frame as everything it could be.
fn body(frame: &Frame) {
    let body = frame.body();
    let _ = codec::query(body);
    if let Ok(parse) = Parse::read(body) {
        assert!(within(body, parse.essence) && within(body, parse.sql.as_bytes()));
    }
    if let Ok(bind) = Bind::read(body) {
        assert!(within(body, bind.essence) && bind.parameters.len() <= body.len());
    }
    let _ = (Execute::read(body).is_ok(), Named::read(body).is_ok(), codec::function_call(body).is_ok());
    let _ = deny::fields(body);
}

fn within(whole: &[u8], part: &[u8]) -> bool {
    let (start, end) = (whole.as_ptr() as usize, whole.as_ptr() as usize + whole.len());
    part.is_empty() || (part.as_ptr() as usize >= start && part.as_ptr() as usize + part.len() <= end)
}

/// Reads the packet that begins a connection. A login that is accepted asks for nothing that would change who acts or how
/// text is read.
pub fn startup(data: &[u8]) {
    let Ok(first) = First::read(&Bytes::copy_from_slice(data)) else { return };
    let First::Startup { parameters, .. } = first else { return };
    let asked: BTreeMap<String, String> = parameters.clone();
    let Ok(login) = Login::check(parameters) else { return };
    for (name, _) in &login.settings {
        let name = name.to_ascii_lowercase();
        assert!(!["role", "session_authorization", "local_preload_libraries"].contains(&name.as_str()), "{asked:?}");
    }
}

/// A masker with a column mask, every detector and one known secret.
fn masker() -> Masker {
    let specs = [
        MaskSpec { columns: vec!["public.t.hidden".into()], ..MaskSpec::new(MaskWith::Redact) },
        MaskSpec {
            detect: vec![
                Detector::CreditCard,
                Detector::Iban,
                Detector::Email,
                Detector::PrivateKey,
                Detector::ApiToken,
            ],
            ..MaskSpec::new(MaskWith::Redact)
        },
    ];
    // Constant and valid, as the tests of masks show.
    let masks = MaskSet::compile(&specs, [7; 32]).unwrap_or_else(|_| MaskSet::none());
    assert!(masks.has_columns());
    Masker { masks: Arc::new(masks), secrets: Arc::new(KnownSecrets::new([SECRET])) }
}

const SECRET: &[u8] = b"correct-horse-battery";

fn columns(masker: &Masker) -> Vec<Column> {
    let column = |rule| Column { rule, type_oid: 25, format: Format::Text };
    let hidden = masker.masks.column("public", "t", "hidden").map_or_else(|| Rule::Hide("test".into()), Rule::Column);
    vec![column(Rule::Scan), column(hidden), column(Rule::Hide("test".into()))]
}

/// Masks COPY data in every layout: a split of the data changes nothing, and what is no row is an error.
pub fn copy(data: &[u8]) {
    let masker = masker();
    for format in [CopyFormat::Text, CopyFormat::Csv, CopyFormat::Binary] {
        let whole = copied(&masker, format, &[data]);
        let step = data.len() / 3 + 1;
        let split = copied(&masker, format, &data.chunks(step).collect::<Vec<_>>());
        assert_eq!(whole, split, "{format:?}");
    }
}

/// What comes out, and whether the data ended with a whole row; `None` if it is no COPY data.
fn copied(masker: &Masker, format: CopyFormat, pieces: &[&[u8]]) -> Option<(Vec<u8>, bool)> {
    let source = CopySource::Query(0..0);
    let info = CopyInfo { direction: CopyDirection::Out, source, format, options: Vec::new() };
    let mut copy = CopyMasker::new(&info, CopyColumns::Each(columns(masker)));
    let (mut out, mut hits) = (Vec::new(), Hits::default());
    for piece in pieces {
        match copy.data(masker, piece, &mut hits).ok()? {
            Rewrite::Pass => out.extend_from_slice(piece),
            // A CopyData frame: its header is not data.
            Rewrite::Replace(frame) => out.extend_from_slice(&frame[5..]),
            Rewrite::Drop => {}
        }
    }
    Some((out, copy.is_whole()))
}

/// Masks a DataRow made of these bytes: hidden values and known secrets do not come through, and the result is a row.
pub fn row(data: &[u8]) {
    let masker = masker();
    let plan = Plan { columns: columns(&masker) };
    // As it is: an error, or a row.
    if let Ok(Rewrite::Replace(frame)) = masker.row(&plan, data, &mut Hits::default()) {
        assert_eq!(values(&frame[5..]).len(), 3);
    }
    // And as the values of a row, with the secret in the middle of the first.
    let cut = data.len() / 2;
    let mut first = data[..cut].to_vec();
    first.extend_from_slice(SECRET);
    first.extend_from_slice(&data[cut..]);
    let hidden = [data, b"\x01hidden"].concat();
    let mut body = 3i16.to_be_bytes().to_vec();
    for value in [&first, &hidden, &hidden] {
        body.extend_from_slice(&i32::try_from(value.len()).unwrap_or(0).to_be_bytes());
        body.extend_from_slice(value);
    }
    match masker.row(&plan, &body, &mut Hits::default()) {
        Ok(Rewrite::Replace(frame)) => {
            let values = values(&frame[5..]);
            let contains = |value: &[u8], part: &[u8]| memchr::memmem::find(value, part).is_some();
            assert!(values.iter().flatten().all(|value| !contains(value, SECRET)), "a known secret came through");
            assert!(values[1..].iter().flatten().all(|value| !contains(value, b"\x01hidden")), "a mask came off");
        }
        other => panic!("a row with secrets came out as {other:?}"),
    }
}

fn values(body: &[u8]) -> Vec<Option<Vec<u8>>> {
    let mut reader = crate::wire::Reader::new(body);
    let count = reader.count(4).unwrap_or(0);
    let all = (0..count).map(|_| reader.value().ok().flatten().map(<[u8]>::to_vec)).collect();
    assert!(reader.all().is_ok(), "the row is whole");
    all
}
