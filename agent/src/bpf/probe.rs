//! What this kernel takes, found by loading: neither its version nor a list of its features tells.

use std::io;

use aya::{Btf, EbpfLoader};

use super::{
    BpfError, OBJECT,
    hooks::{self, GOVERNED, OWN, UNIX},
    lsm,
    maps::Maps,
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

/// What the kernel takes.
#[derive(Debug)]
pub struct Probe {
    /// Hooks of cgroups.
    pub hooks: Vec<Probed>,
    /// Why it does not take and call the programs of the security module; `None` where it does.
    pub no_lsm: Option<String>,
}

/// Loads every program, beside those that enforce; nothing is pinned, nothing governed, and all is gone when this
/// returns.
///
/// # Errors
/// The object cannot be loaded at all, mostly because the caller is not root.
pub fn probe() -> Result<Probe, BpfError> {
    if OBJECT.is_empty() {
        return Err(BpfError::NotBuilt);
    }
    let types = Btf::from_sys_fs().ok();
    let loaded = EbpfLoader::new().btf(types.as_ref()).load(OBJECT);
    let mut object = loaded.map_err(|source| BpfError::Object(Box::new(source)))?;
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
    let peers = all.iter().any(|probed| UNIX.iter().any(|hook| hook.name == probed.hook) && probed.refused.is_some());
    let maps = Maps::take(&mut object)?;
    let no_lsm = lsm::probe(&mut object, types.as_ref(), &maps.lsm, peers);
    Ok(Probe { hooks: all, no_lsm })
}

fn reason(error: io::Error) -> String {
    error.to_string()
}
