//! Sessions against a real PostgreSQL, over in-memory streams: no root, no kernel hooks.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bounds;
mod client_certificates;
mod dns;
mod dry_run;
mod escapes;
mod hold;
mod http;
mod http2;
mod interim;
mod lists;
mod llm;
mod logins;
mod masks;
mod names;
mod oauth2;
mod placeholders;
mod readings;
mod refuse;
mod sigv4;
mod versions;
mod websocket;
mod wild;

use portcullis_tests::Postgres;

/// Allows all, masks customers, refuses payroll, holds deletes.
const POLICY: &str = r#"
[workload]
name = "bot"
cgroup = "portcullis.slice/bot/*"
autonomy = "autonomous"

[[upstream]]
name = "shop"
protocol = "postgres"
address = ["127.0.0.1:{port}"]
tls = { mode = "verify-full", ca = "{ca}" }
credential = { source = "file", user = "shop_agent", path = "{password}" }

[[rule]]
name = "reads"
upstream = "shop"
verbs = ["read"]
targets = ["**"]
except = ["public.payroll"]
effect = "allow"

[[rule]]
name = "writes"
upstream = "shop"
verbs = ["write", "schema"]
targets = ["**"]
effect = "allow"

[[rule]]
name = "no payroll"
upstream = "shop"
verbs = ["read", "write", "delete"]
targets = ["public.payroll"]
effect = "deny"
reason = "payroll is not for bots"

[[rule]]
name = "deletes wait"
upstream = "shop"
verbs = ["delete"]
effect = "hold"
reviewers = ["group:dba"]
expires = "60s"

[[mask]]
upstream = "shop"
columns = ["public.customers.email", "*.ssn", "customers.notes"]
with = "redact"

[[mask]]
detect = ["credit_card", "iban"]
with = "redact"
"#;

fn server() -> Postgres {
    Postgres::start().unwrap()
}
