//! The one system call of the launcher and the helper that has no safe wrapper.
#![expect(unsafe_code, reason = "close_range(2) is in neither std nor nix")]

use std::io;

/// Marks every descriptor from `first` on to be closed at exec. They stay usable until then, so nothing that owns one is
/// betrayed. Linux 5.11.
pub(super) fn close_at_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: marking descriptors touches no memory and closes nothing now.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes every descriptor from 3 on. For a program that has just begun and was handed none that it knows of.
pub(crate) fn close_what_was_inherited() -> io::Result<()> {
    // SAFETY: closing touches no memory; called before anything of this process owns a descriptor that is not standard.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
