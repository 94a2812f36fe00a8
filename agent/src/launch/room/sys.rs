//! mount_setattr(2) [Linux 5.12].

use std::{ffi::CString, io, os::unix::ffi::OsStrExt, path::Path};

/// Whether things can be written by way of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    ReadOnly,
    Writable,
}

/// How far a change goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// The mount alone.
    Itself,
    /// The mount and all those below it.
    Below,
}

/// Changes the mount whose root is `path`.
pub(super) fn set_attributes(path: &Path, reach: Reach, access: Access) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let (set, clear) = match access {
        Access::ReadOnly => (libc::MOUNT_ATTR_RDONLY, 0),
        Access::Writable => (0, libc::MOUNT_ATTR_RDONLY),
    };
    let attributes = libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    let flags = match reach {
        Reach::Itself => 0,
        Reach::Below => libc::AT_RECURSIVE,
    };
    // SAFETY: the path ends with a NUL and the structure is as long as said; both live until the call returns.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
