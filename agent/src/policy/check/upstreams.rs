//! What `[[upstream]]` means.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr},
    ops::Range,
    path::{Component, PathBuf},
    sync::Arc,
};

use super::{
    At, Checker, CredentialKind, CredentialRef, CredentialSource, Inject, ProtocolId, TlsMode, TlsSpec, UpstreamSpec,
    Verb, credentials::Needed, file,
};
use crate::policy::Route;

impl Checker<'_> {
    pub(super) fn upstreams(&mut self, upstreams: &[At<file::Upstream>]) {
        let mut names: HashMap<&str, usize> = HashMap::new();
        let mut addresses: HashMap<String, &str> = HashMap::new();
        for At { value: upstream, .. } in upstreams {
            let name = &upstream.name;
            self.identifier(name, "upstream");
            let line = self.source.position(name.span.start).0;
            if let Some(first) = names.insert(&name.value, line) {
                let message = format!("two upstreams are named `{}`", name.value);
                self.hinted(&name.span, message, format!("the other is on line {first}"));
            }
            for address in self.addresses(upstream) {
                if let Some(other) = addresses.insert(address.value.to_ascii_lowercase(), &name.value) {
                    let message = format!("the address `{}` is listed twice", address.value);
                    let help = format!("upstream `{other}` has it; a connection could not be told apart");
                    self.hinted(&address.span, message, help);
                }
            }
            // A broken upstream is still known by name, so that rules about it are not said to be wrong.
            let spec = self.upstream(upstream);
            self.upstreams.push(Arc::new(spec));
        }
    }

    fn upstream(&mut self, upstream: &file::Upstream) -> UpstreamSpec {
        let protocol = self.protocol(&upstream.protocol).unwrap_or(ProtocolId::Postgres);
        let databases = self.filled(&upstream.databases, "databases").unwrap_or_default();
        for database in databases {
            self.sentence(database, "the database's name");
        }
        if let Some(databases) = upstream.databases.as_ref().filter(|_| protocol.is_http()) {
            self.hinted(&databases.span, "HTTP has no databases", "say it with rules over targets");
        }
        UpstreamSpec {
            name: upstream.name.value.as_str().into(),
            protocol,
            addresses: upstream.address.value.each(&upstream.address.span).into_iter().map(|a| a.value).collect(),
            databases: databases.iter().map(|database| database.value.clone()).collect(),
            tier: upstream.tier.as_ref().map(|tier| tier.value),
            tls: self.tls(upstream.tls.as_ref()),
            client_tls: upstream.client_tls,
            credential: self.credential(&upstream.name.value, protocol, upstream.credential.as_ref()),
            client_certificate: self.client_certificate(protocol, upstream),
            routes: self.routes(protocol, &upstream.route),
            models: self.models(protocol, upstream),
            placeholders: self.placeholders(protocol, &upstream.placeholder),
        }
    }

    fn routes(&mut self, protocol: ProtocolId, routes: &[At<file::Route>]) -> Vec<Route> {
        let mut found = Vec::new();
        for At { span, value: route } in routes {
            if !protocol.is_http() {
                self.hinted(span, "only requests of HTTP have routes", "say it with rules over targets");
            }
            if route.targets.value.is_empty() {
                self.error(&route.targets.span, "a route needs a target");
            }
            let verb = route.verb.value;
            if matches!(verb, Verb::Connect | Verb::Session | Verb::Infer | Verb::Unknown) {
                let help = "`read`, `write`, `delete`, `schema`, `admin` or `execute`";
                self.hinted(&route.verb.span, format!("no request does `{verb}`"), help);
            }
            let targets = route.targets.value.iter().filter_map(|pattern| self.route(pattern)).collect();
            found.push(Route { targets, verb });
        }
        found
    }

    fn addresses(&mut self, upstream: &file::Upstream) -> Vec<At<String>> {
        let whole = &upstream.address;
        let each = whole.value.each(&whole.span);
        if each.is_empty() {
            self.error(&whole.span, "an upstream needs an address");
        }
        for address in &each {
            if let Err((message, help)) = address_parts(&address.value) {
                self.hinted(&address.span, message, help);
            }
        }
        each
    }

    pub(super) fn tls(&mut self, tls: Option<&At<file::Tls>>) -> TlsSpec {
        let Some(At { span, value: tls }) = tls else {
            return TlsSpec { mode: TlsMode::VerifyFull, ca: None, client: None };
        };
        let mode = tls.mode.unwrap_or(TlsMode::VerifyFull);
        for (key, path) in [("ca", &tls.ca), ("cert", &tls.cert), ("key", &tls.key)] {
            let Some(path) = path else { continue };
            self.absolute(path, key);
            if mode == TlsMode::Disable {
                self.hinted(&path.span, format!("`{key}` means nothing with mode `disable`"), "leave one of them out");
            } else if mode == TlsMode::Require && key == "ca" {
                let help = "use `verify-ca` or `verify-full`, or leave `ca` out";
                self.hinted(&path.span, "mode `require` checks no certificate, so `ca` means nothing", help);
            }
        }
        let client = match (&tls.cert, &tls.key) {
            (Some(cert), Some(key)) => Some((cert.value.clone(), key.value.clone())),
            (None, None) => None,
            _ => {
                self.error(span, "a client certificate needs both `cert` and `key`");
                None
            }
        };
        TlsSpec { mode, ca: tls.ca.as_ref().map(|ca| ca.value.clone()), client }
    }

    fn credential(
        &mut self,
        upstream: &str,
        protocol: ProtocolId,
        credential: Option<&At<file::Credential>>,
    ) -> CredentialRef {
        let none = CredentialRef::plain(upstream.into(), CredentialSource::None);
        let Some(At { span, value: credential }) = credential else { return none };
        self.inject(protocol, span, credential);
        if let Some(user) = &credential.user {
            self.sentence(user, "the user");
        }
        let kind = credential.source;
        let timed = if kind == CredentialKind::OAuth2 { kind } else { CredentialKind::Exec };
        self.keys_of(
            span,
            kind,
            &[
                ("path", credential.path.as_ref().map(|key| &key.span), CredentialKind::File, Needed::Always),
                ("argv", credential.argv.as_ref().map(|key| &key.span), CredentialKind::Exec, Needed::Always),
                ("timeout", credential.timeout.as_ref().map(|key| &key.span), timed, Needed::Never),
            ],
        );
        self.oauth2_keys(span, credential);
        let source = match kind {
            CredentialKind::None => CredentialSource::None,
            CredentialKind::File => self.file_source(credential.path.as_ref()),
            CredentialKind::Exec => self.exec_source(credential.argv.as_ref(), credential.timeout.as_ref()),
            CredentialKind::OAuth2 => self.oauth2(protocol, span, credential),
        };
        let inject = credential.inject.as_ref().map(|inject| inject.value.clone()).unwrap_or_default();
        let session_token = self.session_token(&inject, credential);
        let user = credential.user.as_ref().map(|user| user.value.clone());
        CredentialRef { user, source, inject, session_token, ..none }
    }

    /// Where an HTTP request carries the secret.
    fn inject(&mut self, protocol: ProtocolId, span: &Range<usize>, credential: &file::Credential) {
        if let Some(inject) = credential.inject.as_ref().filter(|_| !protocol.is_http()) {
            self.hinted(&inject.span, format!("`inject` means nothing with `{protocol}`"), "it is for `http`");
        }
        let basic = credential.inject.as_ref().is_some_and(|inject| inject.value == Inject::Basic);
        let signs = credential.inject.as_ref().is_some_and(|inject| matches!(inject.value, Inject::SigV4(_)));
        match &credential.user {
            _ if (basic || signs) && credential.source == CredentialKind::OAuth2 => {
                self.error(span, "a token of `oauth2` does not go with `basic` or `sigv4`: use `bearer`")
            }
            // A program may tell it.
            None if basic && credential.source != CredentialKind::Exec => self.error(span, "`basic` needs a `user`"),
            Some(user) if basic && user.value.contains(':') => self.error(&user.span, "a user of `basic` has no `:`"),
            // An access key's id stands in a list in the field.
            Some(user) if signs && !user.value.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                self.error(&user.span, "an access key's id has letters and digits only")
            }
            Some(user) if protocol.is_http() && !basic && !signs => self.error(
                &user.span,
                "an HTTP request carries a user only with `inject = \"basic\"`, or as an access key's id with `sigv4`",
            ),
            _ => return,
        };
    }

    pub(super) fn argv(&mut self, argv: &At<Vec<String>>) {
        match argv.value.first() {
            None => self.hinted(&argv.span, "`argv` is an empty list", "name a program by its absolute path"),
            Some(program) if !program.starts_with('/') => {
                self.hinted(&argv.span, format!("`{program}` is not an absolute path"), "no search path is used");
            }
            Some(_) => {}
        }
        if argv.value.iter().any(|argument| argument.contains('\0')) {
            self.error(&argv.span, "an argument has a NUL character");
        }
    }

    /// A secret's path, absolute or below `$CREDENTIALS_DIRECTORY`.
    pub(super) fn secret_path(&mut self, path: &At<PathBuf>) -> PathBuf {
        let climbs = path.value.components().any(|part| part == Component::ParentDir);
        if path.value.as_os_str().is_empty() {
            self.error(&path.span, "the path is empty");
        } else if path.value.is_relative() && climbs {
            self.error(&path.span, "a relative path is below $CREDENTIALS_DIRECTORY and may not have `..`");
        }
        path.value.clone()
    }

    fn absolute(&mut self, path: &At<PathBuf>, key: &str) {
        if !path.value.is_absolute() {
            self.error(&path.span, format!("`{key}` must be an absolute path"));
        }
    }
}

/// Checks `host:port`.
fn address_parts(address: &str) -> Result<(), (String, String)> {
    let no_port = || {
        let help = if address.parse::<Ipv6Addr>().is_ok() {
            format!("write `[{address}]:5432`")
        } else {
            format!("write `{}:5432`", address.trim_end_matches(':'))
        };
        (format!("the address `{address}` has no port"), help)
    };
    let bad_host = || {
        (format!("`{address}` is not `host:port`"), "a name, an IPv4 address or an IPv6 address in brackets".to_owned())
    };
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or_else(bad_host)?;
            host.parse::<Ipv6Addr>().map_err(|_| bad_host())?;
            (None, after.strip_prefix(':').ok_or_else(no_port)?)
        }
        None => {
            let (host, port) = address.rsplit_once(':').ok_or_else(no_port)?;
            if host.contains(':') {
                return Err(if address.parse::<Ipv6Addr>().is_ok() { no_port() } else { bad_host() });
            }
            (Some(host), port)
        }
    };
    if port.is_empty() {
        return Err(no_port());
    }
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    if !digits || port.parse::<u16>().map_or(true, |port| port == 0) {
        return Err((format!("`{port}` is not a port"), "a number from 1 to 65535".into()));
    }
    if host.is_some_and(|host| !is_host(host)) { Err(bad_host()) } else { Ok(()) }
}

/// A DNS name (RFC 1123, with `_`) or an IPv4 address.
fn is_host(host: &str) -> bool {
    if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return host.parse::<Ipv4Addr>().is_ok();
    }
    let label = |label: &str| {
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(fits)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.len() <= 253 && host.strip_suffix('.').unwrap_or(host).split('.').all(label)
}
