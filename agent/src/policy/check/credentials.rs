//! What the keys of a credential mean.

use std::{collections::HashMap, ops::Range, path::PathBuf};

use super::{At, Checker, CredentialKind, CredentialSource, DEFAULT_EXEC_TIMEOUT, Inject, ProtocolId, TlsMode, file};
use crate::policy::{
    ClientAuth, OAuth2Spec, PLACEHOLDER, Placeholder, Scheme, TokenEndpoint, duration::Span, file::SecretKind,
};

/// Longest name of a placeholder.
const NAME_MAX: usize = 64;

/// Whether a source must have a key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Needed {
    Always,
    Never,
}

/// A key, where it stands, and the source that it is for.
type Key<'a> = (&'static str, Option<&'a Range<usize>>, CredentialKind, Needed);

impl Checker<'_> {
    /// Keys of other sources, and keys that are missing.
    pub(super) fn keys_of(&mut self, span: &Range<usize>, kind: CredentialKind, keys: &[Key<'_>]) {
        for (key, at, of, needed) in keys {
            match at {
                Some(at) if *of != kind => {
                    let help = match of {
                        CredentialKind::File => "it is for `file`",
                        CredentialKind::OAuth2 => "it is for `oauth2`",
                        _ => "it is for `exec`",
                    };
                    self.hinted(at, format!("`{key}` means nothing with this source"), help);
                }
                None if *of == kind && *needed == Needed::Always => {
                    self.error(span, format!("this source needs `{key}`"));
                }
                _ => {}
            }
        }
    }

    pub(super) fn file_source(&mut self, path: Option<&At<PathBuf>>) -> CredentialSource {
        CredentialSource::File { path: path.map(|path| self.secret_path(path)).unwrap_or_default() }
    }

    pub(super) fn exec_source(
        &mut self,
        argv: Option<&At<Vec<String>>>,
        timeout: Option<&At<Span>>,
    ) -> CredentialSource {
        if let Some(argv) = argv {
            self.argv(argv);
        }
        CredentialSource::Exec {
            argv: argv.map(|argv| argv.value.clone()).unwrap_or_default(),
            timeout: timeout.map_or(DEFAULT_EXEC_TIMEOUT, |timeout| timeout.value.0),
        }
    }

    /// A secret that is a part of something.
    pub(super) fn secret(&mut self, secret: &At<file::Secret>) -> CredentialSource {
        let At { span, value: secret } = secret;
        self.simple(span, secret.source, secret.path.as_ref(), secret.argv.as_ref(), secret.timeout.as_ref())
    }

    fn simple(
        &mut self,
        span: &Range<usize>,
        source: SecretKind,
        path: Option<&At<PathBuf>>,
        argv: Option<&At<Vec<String>>>,
        timeout: Option<&At<Span>>,
    ) -> CredentialSource {
        let kind = match source {
            SecretKind::File => CredentialKind::File,
            SecretKind::Exec => CredentialKind::Exec,
        };
        self.keys_of(
            span,
            kind,
            &[
                ("path", path.map(|key| &key.span), CredentialKind::File, Needed::Always),
                ("argv", argv.map(|key| &key.span), CredentialKind::Exec, Needed::Always),
                ("timeout", timeout.map(|key| &key.span), CredentialKind::Exec, Needed::Never),
            ],
        );
        match source {
            SecretKind::File => self.file_source(path),
            SecretKind::Exec => self.exec_source(argv, timeout),
        }
    }

    /// What shows an upstream within TLS who the enforcer is.
    pub(super) fn client_certificate(
        &mut self,
        protocol: ProtocolId,
        upstream: &file::Upstream,
    ) -> Option<CredentialSource> {
        let given = upstream.client_certificate.as_ref()?;
        let tls = upstream.tls.as_ref().map(|tls| &tls.value);
        if !protocol.is_http() {
            let help = "name files: `tls = { cert = ..., key = ... }`";
            self.hinted(&given.span, format!("`client_certificate` means nothing with `{protocol}`"), help);
        } else if tls.is_some_and(|tls| tls.mode == Some(TlsMode::Disable)) {
            self.hinted(&given.span, "`client_certificate` means nothing without TLS", "leave one of them out");
        } else if tls.is_some_and(|tls| tls.cert.is_some() || tls.key.is_some()) {
            let help = "leave `cert` and `key` out, or this";
            self.hinted(&given.span, "`tls` names another client certificate", help);
        }
        Some(self.secret(given))
    }

    /// What goes with temporary keys of AWS.
    pub(super) fn session_token(&mut self, inject: &Inject, credential: &file::Credential) -> Option<CredentialSource> {
        let token = credential.session_token.as_ref()?;
        if !matches!(inject, Inject::SigV4(_)) {
            self.hinted(&token.span, "`session_token` means nothing here", "it is for `inject = \"sigv4:...\"`");
        }
        Some(self.secret(token))
    }

    /// Texts in requests that stand for secrets.
    pub(super) fn placeholders(
        &mut self,
        protocol: ProtocolId,
        placeholders: &[At<file::Placeholder>],
    ) -> Vec<Placeholder> {
        let mut found: Vec<Placeholder> = Vec::new();
        let mut names: HashMap<&str, usize> = HashMap::new();
        for At { span, value: placeholder } in placeholders {
            if protocol != ProtocolId::Http {
                self.hinted(span, "only requests of HTTP have placeholders", "use `credential`");
            }
            let At { span: at, value: name } = &placeholder.name;
            let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            if name.starts_with(PLACEHOLDER) {
                let help = format!("leave `{PLACEHOLDER}` out: it goes before each name");
                self.hinted(at, "this is the whole placeholder, not its name", help);
            } else if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(fits) {
                let message = format!("`{}` cannot be the name of a placeholder", name.escape_debug());
                self.hinted(at, message, "up to 64 letters, digits and `_`");
            }
            let line = self.source.position(at.start).0;
            if let Some(first) = names.insert(name, line) {
                let help = format!("the other is on line {first}");
                self.hinted(at, format!("two placeholders of this upstream are named `{name}`"), help);
            }
            if placeholder.places.value.is_empty() {
                let help = "`header`, `header:NAME`, `query`, `query:NAME` or `body`";
                self.hinted(&placeholder.places.span, "a placeholder that may stand nowhere", help);
            }
            let (path, argv) = (placeholder.path.as_ref(), placeholder.argv.as_ref());
            let source = self.simple(span, placeholder.source, path, argv, placeholder.timeout.as_ref());
            let places = placeholder.places.value.iter().map(|place| place.value.clone()).collect();
            found.push(Placeholder { name: name.as_str().into(), source, places });
        }
        found
    }

    /// Keys of `oauth2` where they mean nothing, or are missing.
    pub(super) fn oauth2_keys(&mut self, span: &Range<usize>, credential: &file::Credential) {
        let of = CredentialKind::OAuth2;
        self.keys_of(
            span,
            credential.source,
            &[
                ("token_url", credential.token_url.as_ref().map(|key| &key.span), of, Needed::Always),
                ("token_tls", credential.token_tls.as_ref().map(|key| &key.span), of, Needed::Never),
                ("client_id", credential.client_id.as_ref().map(|key| &key.span), of, Needed::Always),
                ("client_secret", credential.client_secret.as_ref().map(|key| &key.span), of, Needed::Never),
                ("client_auth", credential.client_auth.as_ref().map(|key| &key.span), of, Needed::Never),
                ("refresh_token", credential.refresh_token.as_ref().map(|key| &key.span), of, Needed::Never),
                ("scopes", credential.scopes.as_ref().map(|key| &key.span), of, Needed::Never),
                ("audience", credential.audience.as_ref().map(|key| &key.span), of, Needed::Never),
            ],
        );
    }

    /// What `oauth2` asks for, and where.
    pub(super) fn oauth2(
        &mut self,
        protocol: ProtocolId,
        span: &Range<usize>,
        credential: &file::Credential,
    ) -> CredentialSource {
        if protocol != ProtocolId::Http {
            self.hinted(span, format!("`{protocol}` takes no bearer token"), "`oauth2` is for `http`");
        }
        let endpoint = credential.token_url.as_ref().and_then(|url| match TokenEndpoint::parse(&url.value) {
            Ok(endpoint) => Some(endpoint),
            Err(why) => {
                self.error(&url.span, format!("`{}` is no token endpoint: {why}", url.value.escape_debug()));
                None
            }
        });
        if let Some(tls) = &credential.token_tls {
            if endpoint.as_ref().is_some_and(|endpoint| endpoint.scheme == Scheme::Http) {
                self.hinted(&tls.span, "`token_tls` means nothing with `http`", "leave it out, or use `https`");
            } else if matches!(tls.value.mode, Some(TlsMode::Disable | TlsMode::Require)) {
                let help = "leave `mode` out, and name a `ca` where the system's roots are not enough";
                self.hinted(&tls.span, "the client's secret is sent there: its certificate must be checked", help);
            }
        }
        if let Some(id) = &credential.client_id {
            self.sentence(id, "the client's name");
        }
        match (&credential.client_secret, &credential.refresh_token, &credential.client_auth) {
            (None, None, _) => {
                let help = "name a `client_secret`, or a `refresh_token`";
                self.hinted(span, "nothing here shows who the client is", help);
            }
            (None, _, Some(auth)) => {
                let help = "leave it out, or name a `client_secret`";
                self.hinted(&auth.span, "a client without a secret has nothing to send", help);
            }
            _ => {}
        }
        let scopes = self.filled(&credential.scopes, "scopes").unwrap_or_default();
        for scope in scopes {
            // RFC 6749 section 3.3.
            let fits = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\';
            if scope.value.is_empty() || !scope.value.bytes().all(fits) {
                self.hinted(&scope.span, "this is no scope", "printable, without spaces: one item for each scope");
            }
        }
        if let Some(audience) = &credential.audience {
            self.sentence(audience, "the audience");
        }
        let tls = self.tls(credential.token_tls.as_ref());
        let client_secret = credential.client_secret.as_ref().map(|secret| self.secret(secret));
        let refresh_token = credential.refresh_token.as_ref().map(|secret| self.secret(secret));
        let Some(endpoint) = endpoint else { return CredentialSource::None };
        CredentialSource::OAuth2(Box::new(OAuth2Spec {
            tls: (endpoint.scheme == Scheme::Https).then_some(tls),
            endpoint,
            client_id: credential.client_id.as_ref().map(|id| id.value.clone()).unwrap_or_default(),
            client_secret,
            client_auth: credential.client_auth.as_ref().map_or(ClientAuth::default(), |auth| auth.value),
            refresh_token,
            scopes: scopes.iter().map(|scope| scope.value.clone()).collect(),
            audience: credential.audience.as_ref().map(|audience| audience.value.clone()),
            timeout: credential.timeout.as_ref().map_or(DEFAULT_EXEC_TIMEOUT, |timeout| timeout.value.0),
        }))
    }
}
