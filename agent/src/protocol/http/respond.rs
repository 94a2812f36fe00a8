//! A response on its way to the client: fields taken out, the body masked.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body as _, Incoming};

use super::{
    body::{MaskedBody, Pipe, Report},
    coding::Coding,
    deny::{AnyBody, Problem},
    masker::Masker,
    request::Request,
    upstream::Keep,
    websocket::{self, Offer},
};
use crate::{
    mask::{Hits, KnownSecrets, MaskSet, Masked},
    session::ConnectionCx,
};

/// Largest response that is masked as a whole, so that its length can be told.
const WHOLE: u64 = 64 << 10;
/// Fields of a response that are of one connection, or lead the client past us (`Alt-Svc`, RFC 7838).
const TAKEN: &[&str] = &[
    "alt-svc",
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Fields that are true of the body as it came only.
const OF_BODY: &[&str] = &["content-md5", "digest", "content-digest", "repr-digest", "accept-ranges", "content-range"];

/// The upstream's response, masked.
///
/// # Errors
/// It is not passed on.
pub async fn respond(
    request: &Request,
    response: Response<Incoming>,
    keep: Keep,
    mut report: Report,
) -> Result<Response<AnyBody>, Problem> {
    let (mut head, body) = response.into_parts();
    let (masks, secrets) = (report.cx.masks(), report.cx.house.secrets.known());
    let refuse = |report: Report, why: &str| {
        report.end(Some(why));
        Err(Problem::upstream(format!("the upstream answered, and its response is not passed on: {why}")))
    };
    let empty = body.is_end_stream() || request.method == http::Method::HEAD;
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return refuse(report, "it changes the protocol");
    }
    if head.status == StatusCode::PARTIAL_CONTENT && !empty {
        return refuse(report, "it is a part, which nobody asked for, and cannot be looked into");
    }
    let coding = Coding::of(&head.headers);
    // A reason phrase of the upstream's own, which nothing masks; and the version that it speaks.
    head.extensions.clear();
    head.version = http::Version::default();
    take(&mut head.headers, TAKEN);
    report.masked(&mask_fields(&mut head.headers, &masks, &secrets));
    report.trailers(&head.headers);
    let content_type =
        head.headers.get(header::CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let watched = report
        .watch()
        .and_then(|watch| watch.begins(head.status, content_type.as_deref().unwrap_or_default(), &masks, &secrets));
    if empty {
        if !matches!(Masker::new(&masks, &secrets, content_type.as_deref().unwrap_or_default()), Ok(Masker::Pass)) {
            // Of the body that a GET would have got masked.
            head.headers.remove(header::CONTENT_LENGTH);
        }
        report.end(None);
        return Ok(Response::from_parts(head, nothing()));
    }
    if report.watch().is_some() && !matches!(coding, Ok(None)) {
        return refuse(report, "it is encoded, which nobody asked for");
    }
    let masker = match Masker::new(&masks, &secrets, content_type.as_deref().unwrap_or_default()) {
        Ok(masker) => watched.map_or(masker, Masker::Other),
        Err(error) => return refuse(report, &error.to_string()),
    };
    let mask_trailers = move |trailers: &mut HeaderMap| {
        take(trailers, TAKEN);
        mask_fields(trailers, &masks, &secrets)
    };
    if matches!(masker, Masker::Pass) {
        let body = MaskedBody::new(body, keep, Pipe::new(masker, None), report, mask_trailers);
        return Ok(Response::from_parts(head, body.boxed_unsync()));
    }
    let coding = match coding {
        Ok(_) if head.headers.get("grpc-encoding").is_some_and(|coding| coding != "identity") => {
            return refuse(report, "its messages are encoded, which nobody asked for");
        }
        Ok(coding) => coding,
        Err(error) => return refuse(report, &error.to_string()),
    };
    if coding.is_none() && body.size_hint().exact().is_some_and(|length| length <= WHOLE) {
        return match mask_whole(body, &keep, masker).await {
            Ok((bytes, changed, hits)) => {
                head.headers.remove(header::CONTENT_LENGTH);
                if changed {
                    take(&mut head.headers, OF_BODY);
                    head.headers.remove(header::ETAG);
                }
                report.masked(&hits);
                report.end_with(&bytes);
                let body = Full::new(bytes).map_err(|never| match never {}).boxed_unsync();
                Ok(Response::from_parts(head, body))
            }
            Err(why) => refuse(report, &why),
        };
    }
    head.headers.remove(header::CONTENT_LENGTH);
    take(&mut head.headers, OF_BODY);
    weaken(&mut head.headers);
    let body = MaskedBody::new(body, keep, Pipe::new(masker, coding), report, mask_trailers);
    Ok(Response::from_parts(head, body.boxed_unsync()))
}

/// The upstream's answer to an upgrade that it agreed to, masked.
pub fn respond_upgrade(offer: &Offer, mut fields: HeaderMap, cx: &ConnectionCx) -> Response<AnyBody> {
    take(&mut fields, TAKEN);
    mask_fields(&mut fields, &cx.masks(), &cx.house.secrets.known());
    websocket::answer(offer, &mut fields);
    let mut response = Response::new(nothing());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = fields;
    response
}

fn nothing() -> AnyBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Takes fields out. Most have none of them, so that it is quicker to look at those that are there.
fn take(fields: &mut HeaderMap, names: &[&str]) {
    while let Some(name) = fields.keys().find(|name| names.contains(&name.as_str())).cloned() {
        fields.remove(name);
    }
}

/// Masks a small body as a whole; says whether it changed.
async fn mask_whole(mut body: Incoming, keep: &Keep, mut masker: Masker) -> Result<(Bytes, bool, Hits), String> {
    let length = body.size_hint().exact().and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
    let mut whole = Bytes::new();
    let mut joined = BytesMut::new();
    while let Some(frame) = keep.run(body.frame()).await {
        let Ok(piece) = frame.map_err(|error| error.to_string())?.into_data() else { continue };
        // Most come in one piece.
        if piece.len() == length && body.is_end_stream() {
            whole = piece;
            break;
        }
        joined.reserve(length.saturating_sub(joined.len()));
        joined.extend_from_slice(&piece);
    }
    if whole.is_empty() {
        whole = joined.freeze();
    }
    // And have nothing to mask.
    if masker.passes(&whole) {
        return Ok((whole, false, Hits::default()));
    }
    let mut out = Vec::with_capacity(whole.len() + 64);
    masker.push(&whole, &mut out).map_err(|error| error.to_string())?;
    let hits = masker.finish(&mut out).map_err(|error| error.to_string())?;
    let changed = out != whole;
    Ok((out.into(), changed, hits))
}

/// Masks what is found in the values of fields.
fn mask_fields(fields: &mut HeaderMap, masks: &MaskSet, secrets: &KnownSecrets) -> Hits {
    let mut hits = Hits::default();
    if secrets.is_empty() && !masks.has_detectors() {
        return hits;
    }
    for value in fields.values_mut() {
        if let masked @ (Masked::Text(_) | Masked::Null) = masks.scrub(value.as_bytes(), secrets, &mut hits) {
            let text = masked.or_text(b"").into_owned();
            // What takes a value's place is text.
            *value = HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(crate::mask::REDACTED));
        }
    }
    hits
}

/// A body that may be masked is not the upstream's to the byte (RFC 9110 section 8.8.1).
fn weaken(headers: &mut HeaderMap) {
    let Some(tag) = headers.get(header::ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/")) else { return };
    if let Ok(weak) = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()) {
        headers.insert(header::ETAG, weak);
    }
}
