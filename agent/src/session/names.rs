//! Names for governed processes: DNS over TCP (RFC 7766) and UDP, whatever resolver they ask.
//!
//! Only names that the workload's policy mentions resolve; everything else does not exist, and is recorded. So a question
//! carries nothing out: none of it is passed on, and what is asked upstream is a name of the policy. Of a name's addresses
//! what was answered is remembered for a while, so that a connection to one of them finds its upstream after the name has
//! moved on. glibc asks over TCP, because its options in the environment say so. Go's own resolver does where
//! resolv.conf(5) says so, and musl's does for answers that were cut; both ask over UDP first.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{
        DNSClass, RData, Record, RecordType,
        rdata::{A, AAAA},
    },
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{BoxIo, House};
use crate::{action::ProcessFacts, identity::Session, policy::Policy};

/// The port of DNS.
pub(super) const PORT: u16 = 53;
/// Longest question, in bytes: the longest name and what stands around it, with room for options.
const QUESTION_MAX: usize = 1024;
/// Longest answer over UDP, in bytes: RFC 1035 section 2.3.4. Clients ask for the rest over TCP.
const DATAGRAM_MAX: usize = 512;
/// Most questions on one connection.
const QUESTIONS_MAX: usize = 1000;
/// How long a client may be silent.
const IDLE: Duration = Duration::from_secs(30);
/// Seconds for which an answer holds: as long as the enforcer itself does not ask again.
const TTL: u32 = 30;
/// How long an answered address is the name's.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Addresses remembered of one name.
const ADDRESSES_MAX: usize = 64;

/// What names were answered with lately.
#[derive(Debug, Default)]
pub struct Answered(Mutex<HashMap<Box<str>, Vec<Answer>>>);

/// An address, and when it was given.
type Answer = (IpAddr, Instant);

impl Answered {
    /// Whether a client that asked for this name a while ago may have got this address.
    pub fn has(&self, name: &str, address: IpAddr) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.get(name).into_iter().flatten();
        known.into_iter().any(|(known, at)| *known == address.to_canonical() && at.elapsed() < REMEMBERED)
    }

    fn learn(&self, name: &str, addresses: &[IpAddr]) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.entry(name.into()).or_default();
        known.retain(|(known, at)| at.elapsed() < REMEMBERED && !addresses.contains(known));
        known.extend(addresses.iter().map(|address| (address.to_canonical(), Instant::now())));
        let over = known.len().saturating_sub(ADDRESSES_MAX);
        known.drain(..over);
    }
}

/// Answers the questions of one connection until it ends.
pub(super) async fn serve(house: &House, session: &Session, process: &ProcessFacts, mut io: BoxIo) {
    let questions = async {
        for _ in 0..QUESTIONS_MAX {
            let question = tokio::time::timeout(IDLE, read(&mut io)).await.ok()??;
            let answer = answer(house, session, process, &question).await;
            let Some(answer) = answer.and_then(|answer| answer.to_vec().ok()) else {
                house.refused(session, "dns: what was sent is no question".into(), process.clone());
                return None;
            };
            let length = u16::try_from(answer.len()).ok()?;
            io.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await.ok()?;
            io.flush().await.ok()?;
        }
        Some(())
    };
    tokio::select! {
        biased;
        () = session.ended.cancelled() => {}
        _ = questions => {}
    }
}

/// The answer to a question over UDP, cut where it is too long for that. `None`: there is none.
pub async fn answer_datagram(
    house: &House,
    session: &Session,
    process: &ProcessFacts,
    question: &[u8],
) -> Option<Vec<u8>> {
    if session.is_over() {
        return None;
    }
    let found = tokio::select! {
        biased;
        () = session.ended.cancelled() => return None,
        found = answer(house, session, process, question) => found,
    };
    let Some(answer) = found else {
        house.refused(session, "dns: what was sent is no question".into(), process.clone());
        return None;
    };
    cut(answer)
}

/// As many of the answer's records as a datagram takes. Clients that know no better use those.
fn cut(mut answer: Message) -> Option<Vec<u8>> {
    let mut bytes = answer.to_vec().ok()?;
    while bytes.len() > DATAGRAM_MAX {
        answer.metadata.truncation = true;
        answer.answers.pop()?;
        bytes = answer.to_vec().ok()?;
    }
    Some(bytes)
}

/// One message behind its length (RFC 1035 section 4.2.2). `None`: the connection is over.
async fn read(io: &mut BoxIo) -> Option<Vec<u8>> {
    let length = usize::from(io.read_u16().await.ok()?);
    if length > QUESTION_MAX {
        return None;
    }
    let mut message = vec![0; length];
    io.read_exact(&mut message).await.ok()?;
    Some(message)
}

/// `None`: what was asked is no question.
async fn answer(house: &House, session: &Session, process: &ProcessFacts, question: &[u8]) -> Option<Message> {
    let asked = Message::from_vec(question).ok()?;
    if asked.metadata.message_type != MessageType::Query {
        return None;
    }
    let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
    answer.metadata.recursion_desired = asked.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_queries(asked.queries.iter().cloned());
    answer.metadata.response_code = match &asked.queries[..] {
        [one] if asked.metadata.op_code == OpCode::Query && one.query_class == DNSClass::IN => {
            let name = one.name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
            let policy = house.policies.load().by_workload(&session.workload).cloned();
            if policy.is_some_and(|policy| mentions(&policy, &name)) {
                match (one.query_type, house.network.resolve(&name).await) {
                    (RecordType::A | RecordType::AAAA, Ok(addresses)) => {
                        house.answered.learn(&name, &addresses);
                        let fits = |address: &&IpAddr| address.is_ipv4() == (one.query_type == RecordType::A);
                        answer.add_answers(addresses.iter().filter(fits).map(|address| {
                            let data = match address {
                                IpAddr::V4(v4) => RData::A(A(*v4)),
                                IpAddr::V6(v6) => RData::AAAA(AAAA(*v6)),
                            };
                            Record::from_rdata(one.name.clone(), TTL, data)
                        }));
                        ResponseCode::NoError
                    }
                    (RecordType::A | RecordType::AAAA, Err(_)) => ResponseCode::ServFail,
                    // It is there, and has nothing of the kind.
                    _ => ResponseCode::NoError,
                }
            } else {
                let what = format!("dns {name} {}: no upstream of the policy has this name", one.query_type);
                house.refused(session, what, process.clone());
                ResponseCode::NXDomain
            }
        }
        _ => ResponseCode::Refused,
    };
    Some(answer)
}

/// Whether an upstream has an address by this name.
fn mentions(policy: &Arc<Policy>, name: &str) -> bool {
    let host =
        |address: &String| address.rsplit_once(':').map(|(host, _)| host.trim_end_matches('.').to_ascii_lowercase());
    policy
        .upstreams()
        .iter()
        .any(|upstream| upstream.addresses.iter().any(|address| host(address).is_some_and(|host| host == name)))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::{op::Query, rr::Name};

    use super::*;

    #[test]
    fn what_is_too_long_for_a_datagram_is_cut_and_says_so() {
        let name = Name::from_ascii("many-addresses.example.com.").unwrap();
        let answer = |count: u8| {
            let mut answer = Message::response(7, OpCode::Query);
            answer.add_query(Query::query(name.clone(), RecordType::A));
            let record = |last| Record::from_rdata(name.clone(), TTL, RData::A(A(Ipv4Addr::new(192, 0, 2, last))));
            answer.add_answers((0..count).map(record));
            answer
        };
        for (count, is_cut) in [(0, false), (1, false), (25, false), (100, true), (255, true)] {
            let bytes = cut(answer(count)).unwrap();
            let read = Message::from_vec(&bytes).unwrap();
            assert!(bytes.len() <= DATAGRAM_MAX);
            assert_eq!(read.metadata.truncation, is_cut, "{count}");
            assert_eq!(read.answers.len() < usize::from(count), is_cut, "{count}");
            assert!(count == 0 || !read.answers.is_empty());
        }
        // What cannot be made shorter is not sent.
        let mut long = answer(0);
        let label = "x".repeat(60);
        for first in ["a", "b", "c", "d"] {
            let name = Name::from_ascii(format!("{first}{label}.{first}{label}.{first}{label}.")).unwrap();
            long.add_query(Query::query(name, RecordType::A));
        }
        assert_eq!(cut(long), None);
    }
}
