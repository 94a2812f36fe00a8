//! What this kernel takes, found by loading: neither its version nor a list of its features tells.

use std::io;

use aya::EbpfLoader;

use super::{
    BpfError, OBJECT,
    hooks::{self, GOVERNED, OWN, UNIX},
    sys, unix,
};

/// One hook, and whether the kernel takes a program for it.
#[derive(Debug)]
pub struct Probed {
    /// Its name.
    pub hook: &'static str,
    /// Why not.
    pub refused: Option<String>,
}

/// Loads every program, beside those that enforce; nothing is attached or pinned, and all is gone when this returns.
///
/// # Errors
/// The object cannot be loaded at all, mostly because the caller is not root.
pub fn probe() -> Result<Vec<Probed>, BpfError> {
    if OBJECT.is_empty() {
        return Err(BpfError::NotBuilt);
    }
    let mut object = EbpfLoader::new().load(OBJECT).map_err(|source| BpfError::Object(Box::new(source)))?;
    let mut all = Vec::new();
    for hook in GOVERNED.into_iter().chain(OWN) {
        let refused = hooks::load(&mut object, hook).err().map(|error| error.to_string());
        all.push(Probed { hook: hook.name, refused });
    }
    let places = unix::places().err();
    for hook in UNIX {
        let refused = places.clone().or_else(|| sys::probe_sock_addr(hook.attach_type).err().map(reason));
        all.push(Probed { hook: hook.name, refused });
    }
    Ok(all)
}

fn reason(error: io::Error) -> String {
    error.to_string()
}
