//! Paths as servers read them. RFC 3986 lets one path be written in many ways, and servers take more liberties still, so
//! a rule about `/admin` must also see `/%61dmin`, `/x/../admin`, `//admin` and `/admin;v=1`.
//!
//! What is sent upstream is the normal form of RFC 3986 section 6.2.2: that is the first reading. Where a lenient server
//! would read something else in it, those readings are judged, too, and the strictest answer holds. Not read: a path
//! decoded twice, and letters compared without regard to case.

use smallvec::SmallVec;

/// A path that cannot be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A `%` without two hexadecimal digits.
    #[error("the path has a `%` that is no percent-encoding")]
    Encoding,
    /// NUL or another control character.
    #[error("the path has control characters")]
    Control,
    /// More `..` than folders.
    #[error("the path leads out of its root")]
    Climbs,
}

/// The readings of a path; the first is the one to send.
pub type Readings = SmallVec<[String; 1]>;

/// Reads a path that begins with `/` and is printable ASCII.
///
/// # Errors
/// It cannot be judged.
pub fn readings(path: &str) -> Result<Readings, PathError> {
    if is_plain(path) {
        return Ok(smallvec::smallvec![path.to_owned()]);
    }
    every_reading(path)
}

/// Whether nobody reads anything else in a path: no encoding, no parameters, no empty segment but the last, none that
/// begins with a dot.
fn is_plain(path: &str) -> bool {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/-._~!$&'()*+,=:@".contains(b);
    path.starts_with('/')
        && path.bytes().all(|b| plain(&b))
        && path.as_bytes().windows(2).all(|two| two[0] != b'/' || !matches!(two[1], b'/' | b'.'))
}

fn every_reading(path: &str) -> Result<Readings, PathError> {
    let normal = remove_dots(&recode(path)?)?;
    let mut readings = Readings::new();
    let lenient = decode(&normal)?;
    readings.push(normal);
    for params in [Params::Kept, Params::Cut] {
        for slashes in [Slashes::AsTheyAre, Slashes::Merged] {
            for text in [&readings[0].clone(), &lenient] {
                let reading = read(text, params, slashes)?;
                if !readings.contains(&reading) {
                    readings.push(reading);
                }
            }
        }
    }
    Ok(readings)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Params {
    Kept,
    Cut,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Slashes {
    AsTheyAre,
    Merged,
}

fn read(path: &str, params: Params, slashes: Slashes) -> Result<String, PathError> {
    let mut text = path.to_owned();
    if params == Params::Cut {
        let segments = text.split('/').map(|segment| segment.split_once(';').map_or(segment, |(name, _)| name));
        text = segments.collect::<Vec<_>>().join("/");
    }
    if slashes == Slashes::Merged {
        while text.contains("//") {
            text = text.replace("//", "/");
        }
    }
    remove_dots(&text)
}

/// Encodings of unreserved characters are decoded, other ones get capital digits, and characters that no path may have
/// are encoded.
fn recode(path: &str) -> Result<String, PathError> {
    let mut out = String::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let (byte, encoded) = if byte == b'%' { (encoded(&mut bytes)?, true) } else { (byte, false) };
        if byte < 0x20 || byte == 0x7f {
            return Err(PathError::Control);
        }
        let unreserved = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let allowed = b"/!$&'()*+,;=:@\\".contains(&byte);
        if unreserved || (allowed && !encoded) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    Ok(out)
}

fn encoded(bytes: &mut std::str::Bytes<'_>) -> Result<u8, PathError> {
    let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16)).ok_or(PathError::Encoding);
    let (high, low) = (digit()?, digit()?);
    u8::try_from(high * 16 + low).map_err(|_| PathError::Encoding)
}

/// Everything decoded once, and backslashes read as slashes. What is no ASCII then stays encoded, so that targets do.
fn decode(normal: &str) -> Result<String, PathError> {
    let mut out = String::with_capacity(normal.len());
    let mut bytes = normal.bytes();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' { encoded(&mut bytes)? } else { byte };
        match byte {
            b'\\' => out.push('/'),
            // As normal forms have them, so that one pattern is about both.
            b' '
            | b'"'
            | b'<'
            | b'>'
            | b'['
            | b']'
            | b'^'
            | b'`'
            | b'{'
            | b'|'
            | b'}'
            | b'%'
            | b'#'
            | b'?'
            | 0x80.. => {
                out.push_str(&format!("%{byte:02X}"));
            }
            _ => out.push(char::from(byte)),
        }
    }
    Ok(out)
}

/// RFC 3986 section 5.2.4, but that climbing over the root is an error.
fn remove_dots(path: &str) -> Result<String, PathError> {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." if last => kept.push(""),
            "." => {}
            ".." => {
                kept.pop().ok_or(PathError::Climbs)?;
                if last {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    Ok(format!("/{}", kept.join("/")))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn all(path: &str) -> Vec<String> {
        readings(path).unwrap().into_vec()
    }

    proptest::proptest! {
        #[test]
        fn the_short_way_reads_what_the_long_one_does(path in "/([a-z/.;%\\\\2fe+~ ]|[!-~])*") {
            proptest::prop_assert_eq!(readings(&path), every_reading(&path));
        }
    }

    #[test]
    fn a_plain_path_has_one_reading() {
        for path in ["/", "/orders", "/orders/", "/orders/17/items", "/a-b_c.d~e", "/x:y@z", "/a=b&c"] {
            assert_eq!(all(path), [path]);
        }
        assert_eq!(all("/%61dmin"), ["/admin"]);
        assert_eq!(all("/a/./b/../c/."), ["/a/c/"]);
        assert_eq!(all("/a/%2e%2E/b"), ["/b"]);
        assert_eq!(all("/caf%c3%a9 "), ["/caf%C3%A9%20"]);
        assert_eq!(all("/a{b}"), ["/a%7Bb%7D"]);
    }

    #[test]
    fn every_reading_of_a_path_is_judged() {
        for (path, sent, also) in [
            ("//admin", "//admin", "/admin"),
            ("/x/..//admin", "//admin", "/admin"),
            ("/admin;v=1", "/admin;v=1", "/admin"),
            ("/admin;/users", "/admin;/users", "/admin/users"),
            ("/admin%2Fusers", "/admin%2Fusers", "/admin/users"),
            ("/x%2f..%2fadmin", "/x%2F..%2Fadmin", "/admin"),
            ("/x/..%5cadmin", "/x/..%5Cadmin", "/admin"),
            ("/public\\..\\admin", "/public\\..\\admin", "/admin"),
            ("/public/..;/admin", "/public/..;/admin", "/admin"),
            ("/%61dmin%3bx", "/admin%3Bx", "/admin"),
            ("/a//b;c//d", "/a//b;c//d", "/a/b/d"),
        ] {
            let all = all(path);
            assert_eq!(all[0], sent, "{path}");
            assert!(all.iter().any(|reading| reading == also), "{path}: {all:?}");
        }
    }

    #[test]
    fn what_cannot_be_judged_is_an_error() {
        for (path, error) in [
            ("/%", PathError::Encoding),
            ("/%4", PathError::Encoding),
            ("/%zz", PathError::Encoding),
            ("/%u0041", PathError::Encoding),
            ("/a%00b", PathError::Control),
            ("/a%0d%0ab", PathError::Control),
            ("/..", PathError::Climbs),
            ("/a/../..", PathError::Climbs),
            ("/%2e%2e/etc", PathError::Climbs),
            ("/..%2fetc", PathError::Climbs),
            ("/..;/admin", PathError::Climbs),
            ("/\\..\\..", PathError::Climbs),
        ] {
            assert_eq!(readings(path), Err(error), "{path}");
        }
    }
}
