//! Name and home of a user that a session has for itself. The host's user database knows neither.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown},
    path::Path,
};

use nix::mount::{MsFlags, mount};

use super::{RoomError, errno, step};
use crate::{
    control::proto::{SeenAs, SessionUser},
    launch::user::Target,
};

/// In the private temporary folder, for as long as it takes.
const DRAFT: &str = "/tmp/.portcullis-names";

/// Makes its home, and gives it a name for those who look it up. The private temporary folders are there already.
pub(in crate::launch) fn settle(own: SessionUser, target: &Target) -> Result<(), RoomError> {
    let home = &target.home;
    match fs::DirBuilder::new().mode(0o700).create(home) {
        Ok(()) => chown(home, Some(target.uid), Some(target.gid)).map_err(step("give away", home))?,
        // The working folder lies in it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(step("make", home)(error)),
    }
    match own.seen {
        // Everybody knows root.
        SeenAs::Root => Ok(()),
        SeenAs::Itself => {
            let Target { name, uid, gid, home, shell, .. } = target;
            let (home, shell) = (home.display(), shell.display());
            add("/etc/passwd", &format!("{name}:x:{uid}:{gid}::{home}:{shell}"))?;
            add("/etc/group", &format!("{name}:x:{gid}:"))
        }
    }
}

/// Lays over a file the same with a line before all others, for this mount namespace alone.
fn add(file: &str, line: &str) -> Result<(), RoomError> {
    let (file, draft) = (Path::new(file), Path::new(DRAFT));
    let text = fs::read_to_string(file).map_err(step("read", file))?;
    // New, and not a link that somebody put there: the folder is this session's, and nothing of it runs yet.
    let mut new = fs::OpenOptions::new();
    let written = new.write(true).create_new(true).mode(0o644).open(draft);
    written
        .and_then(|mut out| io::Write::write_all(&mut out, format!("{line}\n{text}").as_bytes()))
        .map_err(step("write", draft))?;
    // Of root's making, whatever the umask says.
    fs::set_permissions(draft, std::os::unix::fs::PermissionsExt::from_mode(0o644)).map_err(step("open", draft))?;
    mount(Some(draft), file, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(errno("mount", file))?;
    fs::remove_file(draft).map_err(step("remove", draft))
}
