//! Names, as governed processes ask for them.

use portcullis::record::EventBody;
use portcullis_tests::{TestHouse, Web};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const POLICY: &str = r#"
[workload]
name = "bot"
cgroup = "portcullis.slice/bot/*"

[[upstream]]
name = "api"
protocol = "http"
address = ["localhost:{port}"]
tls = { ca = "{ca}" }

[[upstream]]
name = "gone"
protocol = "http"
address = ["no-such-host.invalid:443"]
"#;

const A: u16 = 1;
const TXT: u16 = 16;
const AAAA: u16 = 28;

/// A question behind its length.
fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&1u16.to_be_bytes());
    [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], &message].concat()
}

/// What came back: the code, and how many records. `None`: the connection ended.
async fn ask(house: &TestHouse, bytes: &[u8]) -> Option<(u8, u16)> {
    let mut client = house.connect_to("9.9.9.9:53".parse().unwrap());
    client.write_all(bytes).await.ok()?;
    let length = client.read_u16().await.ok()?;
    let mut answer = vec![0; usize::from(length)];
    client.read_exact(&mut answer).await.ok()?;
    assert_eq!(&answer[..2], &[0x12, 0x34]);
    Some((answer[3] & 15, u16::from_be_bytes([answer[6], answer[7]])))
}

fn recorded(house: &TestHouse) -> Vec<String> {
    let events = house.events().unwrap();
    let refused = events.iter().filter_map(|event| match &event.body {
        EventBody::Refused { what, .. } => Some(what.clone()),
        _ => None,
    });
    refused.collect()
}

#[tokio::test]
async fn names_of_the_policy_resolve_and_no_other_exists() {
    let web = Web::start().unwrap();
    let house = TestHouse::new(&web, POLICY).unwrap();
    let (code, count) = ask(&house, &question("localhost", A)).await.unwrap();
    assert!(code == 0 && count >= 1);
    assert_eq!(ask(&house, &question("LocalHost.", A)).await.unwrap().0, 0);
    assert_eq!(ask(&house, &question("localhost", AAAA)).await.unwrap().0, 0);
    assert_eq!(ask(&house, &question("localhost", TXT)).await.unwrap(), (0, 0));
    assert_eq!(
        ask(&house, &question("no-such-host.invalid", A)).await.unwrap().0,
        2,
        "a name of the policy that fails"
    );
    assert!(recorded(&house).is_empty());
    let label = "s3cr3t-in-a-label".repeat(3);
    let long = format!("{label}.{label}.{label}.evil.example");
    for name in ["evil.example", "a.localhost", "localhost.evil.example", "com", "", &long] {
        for kind in [A, AAAA, TXT, 255, 252] {
            assert_eq!(ask(&house, &question(name, kind)).await.unwrap(), (3, 0), "{name} {kind}");
        }
    }
    assert!(recorded(&house).iter().any(|what| what.contains("dns evil.example TXT")), "{:?}", recorded(&house));
}

#[tokio::test]
async fn what_is_no_question_ends_the_connection() {
    let web = Web::start().unwrap();
    let house = TestHouse::new(&web, POLICY).unwrap();
    let mut answer = question("localhost", A);
    answer[4] |= 0x80;
    let mut update = question("localhost", A);
    update[4] |= 5 << 3;
    for (bytes, code) in [
        (&[0, 0][..], None),
        (&[0, 3, 1, 2, 3], None),
        (&[0xff; 600], None),
        (b"GET / HTTP/1.1\r\n\r\n", None),
        (&answer, None),
        (&update, Some(5)),
    ] {
        let mut client = house.connect_to("9.9.9.9:53".parse().unwrap());
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let mut out = Vec::new();
        client.read_to_end(&mut out).await.unwrap();
        assert_eq!(out.get(5).map(|byte| byte & 15), code, "{bytes:?}: {out:?}");
    }
    assert!(recorded(&house).iter().any(|what| what.contains("no question")), "{:?}", recorded(&house));
    // Several questions on one connection, cut anywhere.
    let both = [question("localhost", A), question("evil.example", A)].concat();
    for at in 1..both.len() {
        let mut client = house.connect_to("[2001:db8::1]:53".parse().unwrap());
        client.write_all(&both[..at]).await.unwrap();
        tokio::task::yield_now().await;
        client.write_all(&both[at..]).await.unwrap();
        let mut codes = Vec::new();
        for _ in 0..2 {
            let mut answer = vec![0; usize::from(client.read_u16().await.unwrap())];
            client.read_exact(&mut answer).await.unwrap();
            codes.push(answer[3] & 15);
        }
        assert_eq!(codes, [0, 3]);
    }
}
