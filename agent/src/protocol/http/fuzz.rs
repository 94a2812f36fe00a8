//! What a fuzzer runs: the properties that hold for any bytes of a client.

use bytes::BytesMut;

use super::{
    guard::{Guard, HEAD_MAX, Violation},
    path,
};

/// Feeds a stream to the guard: however it is cut, the same passes and the same is wrong; what has passed passes again as
/// it is, and another reader finds the same heads in it. Then reads it as a path: what is sent is read as what was judged.
pub fn http(data: &[u8]) {
    let (first, stream) = data.split_first().map_or((0, data), |(first, rest)| (usize::from(*first), rest));
    let whole = feed(stream, stream.len().max(1));
    assert_eq!(feed(stream, first % 37 + 1), whole, "a cut changes nothing");
    let again = feed(&whole.0, first % 11 + 1);
    assert_eq!((&again.0, again.1), (&whole.0, None), "what has passed passes");
    if whole.0.starts_with(b"GET ") || whole.0.starts_with(b"POST ") {
        let mut fields = [httparse::EMPTY_HEADER; 128];
        let mut request = httparse::Request::new(&mut fields);
        let read = request.parse(&whole.0).map(|status| status.is_complete());
        assert!(read == Ok(true) || whole.0.len() >= HEAD_MAX, "another reader does not read the head: {read:?}");
    }
    let text = String::from_utf8_lossy(stream);
    let printable = text.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#');
    if text.starts_with('/') && printable && text.len() < 500 {
        let Ok(readings) = path::readings(&text) else { return };
        let sent = path::readings(&readings[0]);
        assert_eq!(sent.as_ref(), Ok(&readings), "what is sent is read as what was judged");
        for reading in &readings {
            assert!(reading.starts_with('/'), "{reading}");
            assert!(!reading.split('/').any(|segment| matches!(segment, "." | "..")), "{reading} has dots");
        }
    }
}

fn feed(stream: &[u8], piece: usize) -> (Vec<u8>, Option<Violation>) {
    let (mut guard, mut input, mut output) = (Guard::default(), BytesMut::new(), BytesMut::new());
    for piece in stream.chunks(piece) {
        input.extend_from_slice(piece);
        if let Err(violation) = guard.feed(&mut input, &mut output) {
            return (output.to_vec(), Some(violation));
        }
    }
    (output.to_vec(), None)
}
