//! Packets before a login: negotiation, cancel, and the startup parameters that may go upstream.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::codec::{Malformed, text};
use crate::{
    sql::{SettingRule, setting_rule},
    wire::Reader,
};

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

/// A packet without a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum First {
    /// The client asks for TLS.
    Ssl,
    /// The client asks for GSSAPI encryption.
    GssEnc,
    /// The client wants another connection's command cancelled.
    Cancel {
        /// Process id it was told.
        pid: u32,
        /// Secret it was told.
        secret: Bytes,
    },
    /// The client logs in.
    Startup {
        /// Minor version of protocol 3 that it asks for.
        minor: u16,
        /// Its parameters.
        parameters: BTreeMap<String, String>,
    },
    /// Another major version.
    Version {
        /// Which.
        major: u16,
    },
}

impl First {
    /// Reads the body of such a packet.
    pub fn read(body: &Bytes) -> Result<Self, Malformed> {
        let mut r = Reader::new(body);
        let code = r.u32()?;
        match code {
            SSL_REQUEST => r.all().map(|()| Self::Ssl).map_err(Into::into),
            GSSENC_REQUEST => r.all().map(|()| Self::GssEnc).map_err(Into::into),
            CANCEL_REQUEST => {
                let pid = r.u32()?;
                let secret = body.slice_ref(r.rest());
                // Protocol 3.2: 4 to 256 bytes.
                if (4..=256).contains(&secret.len()) { Ok(Self::Cancel { pid, secret }) } else { Err(Malformed::Shape) }
            }
            _ => match (code >> 16, code & 0xffff) {
                (3, minor) => {
                    Ok(Self::Startup { minor: u16::try_from(minor).unwrap_or(u16::MAX), parameters: parameters(r)? })
                }
                (major, _) => Ok(Self::Version { major: u16::try_from(major).unwrap_or(u16::MAX) }),
            },
        }
    }
}

fn parameters(mut r: Reader<'_>) -> Result<BTreeMap<String, String>, Malformed> {
    let mut found = BTreeMap::new();
    loop {
        let name = text(r.cstr()?)?;
        if name.is_empty() {
            break;
        }
        let value = text(r.cstr()?)?;
        if found.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err(Malformed::Shape);
        }
    }
    r.all()?;
    Ok(found)
}

/// A login as the client asked for it, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The user that the client named. The upstream's is the credential's.
    pub user: String,
    /// Database.
    pub database: String,
    /// Settings to pass upstream.
    pub settings: Vec<(String, String)>,
    /// `_pq_.` options that we do not speak.
    pub unknown_options: Vec<String>,
}

/// Why a login was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginRefused {
    /// No user.
    #[error("no user name was given")]
    User,
    /// Replication.
    #[error("replication connections are refused")]
    Replication,
    /// A setting that may not be given, or not with this value.
    #[error("the setting \"{name}\" may not be {}", value.as_ref().map_or("set here".into(), |v| format!("\"{v}\"")))]
    Setting {
        /// Its name.
        name: String,
        /// Its value, where another would be accepted.
        value: Option<String>,
    },
    /// `options` that cannot be read.
    #[error("the startup options cannot be understood; use -c NAME=VALUE")]
    Options,
}

impl Login {
    /// Checks startup parameters: only settings that change neither how text is read nor who runs it.
    pub fn check(mut parameters: BTreeMap<String, String>) -> Result<Self, LoginRefused> {
        let user = parameters.remove("user").filter(|u| !u.is_empty()).ok_or(LoginRefused::User)?;
        let database = parameters.remove("database").filter(|d| !d.is_empty()).unwrap_or_else(|| user.clone());
        if parameters.remove("replication").is_some_and(|v| !matches!(v.as_str(), "false" | "off" | "no" | "0")) {
            return Err(LoginRefused::Replication);
        }
        let mut login = Self { user, database, settings: Vec::new(), unknown_options: Vec::new() };
        if let Some(options) = parameters.remove("options") {
            for (name, value) in split_options(&options)? {
                login.setting(name, value)?;
            }
        }
        for (name, value) in parameters {
            if name.starts_with("_pq_.") {
                login.unknown_options.push(name);
            } else {
                login.setting(name, value)?;
            }
        }
        // Whatever was asked for, the encoding is the one that policy reads.
        login.settings.retain(|(name, _)| name != "client_encoding");
        login.settings.push(("client_encoding".into(), "UTF8".into()));
        Ok(login)
    }

    fn setting(&mut self, name: String, value: String) -> Result<(), LoginRefused> {
        let lower = name.to_ascii_lowercase();
        // A client in the C locale says SQL_ASCII; it gets UTF-8 and is told so by ParameterStatus.
        if lower == "client_encoding" && value.eq_ignore_ascii_case("sql_ascii") {
            return Ok(());
        }
        match setting_rule(&lower) {
            SettingRule::Free | SettingRule::SearchPath => {}
            SettingRule::Pinned(values) => {
                if !values.iter().any(|v| v.eq_ignore_ascii_case(value.trim_matches('\''))) {
                    return Err(LoginRefused::Setting { name: lower, value: Some(value) });
                }
            }
            SettingRule::Refused => return Err(LoginRefused::Setting { name: lower, value: None }),
        }
        self.settings.push((lower, value));
        Ok(())
    }

    /// The `search_path` that the client asked for, if it did.
    pub fn search_path(&self) -> Option<&str> {
        self.settings.iter().rev().find(|(name, _)| name == "search_path").map(|(_, value)| value.as_str())
    }
}

/// `-c name=value` and `--name=value`, split as `pg_split_opts` does: at blanks, a backslash keeps the next character.
fn split_options(options: &str) -> Result<Vec<(String, String)>, LoginRefused> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = options.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.get_or_insert_default().push(chars.next().ok_or(LoginRefused::Options)?),
            c if c.is_ascii_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    let mut settings = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let setting = if word == "-c" {
            words.next().ok_or(LoginRefused::Options)?
        } else if let Some(rest) = word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
            rest.to_owned()
        } else {
            return Err(LoginRefused::Options);
        };
        let (name, value) = setting.split_once('=').ok_or(LoginRefused::Options)?;
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(settings)
}
