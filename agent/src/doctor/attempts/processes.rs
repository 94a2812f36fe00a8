//! Attempts by way of other processes, of the daemon, of cgroups, and of programs that run as somebody else.

use std::{
    ffi::CString,
    fs,
    io::{Read, Write},
    os::{
        fd::AsRawFd,
        unix::{fs::FileExt, net::UnixStream},
    },
    process::Command,
};

use serde_json::json;

use super::{
    Attempt, Road, Target,
    sys::{INET, To, address, bind, on, socket, syscall},
};

/// Name of the attempt that only Landlock's scopes stop.
pub(in crate::doctor) const SIGNAL: &str = "signal to another process";

pub(super) fn attempts() -> Vec<Attempt> {
    let mut all = others();
    all.extend(daemon());
    all.extend(cgroups());
    all.push(Attempt::effect(Road::Privileges, "new privileges", |_| {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        !status.contains("NoNewPrivs:\t1")
    }));
    all.push(Attempt::effect(Road::Privileges, "unfiltered system calls", |_| {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        !status.contains("Seccomp:\t2")
    }));
    all.push(Attempt::effect(Road::Privileges, "a program with the set-user-id bit", |t| {
        let output = Command::new(&t.other_user).arg("-u").output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).trim() == t.other_uid.to_string())
    }));
    all
}

fn others() -> Vec<Attempt> {
    let road = Road::Processes;
    vec![
        Attempt::effect(road, "ptrace attach", |t| syscall(libc::SYS_ptrace, [16, t.outside as usize, 0, 0, 0])),
        Attempt::effect(road, "ptrace seize", |t| syscall(libc::SYS_ptrace, [0x4206, t.outside as usize, 0, 0, 0])),
        Attempt::effect(road, "pidfd_getfd", |t| {
            // SAFETY: a plain system call.
            let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, t.outside, 0) };
            pidfd >= 0 && syscall(libc::SYS_pidfd_getfd, [pidfd as usize, 0, 0, 0, 0])
        }),
        // What was written, the witness finds.
        Attempt::sends(road, "process_vm_writev", |t| {
            let mut bytes = t.marker().to_vec();
            let here = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            let there = libc::iovec { iov_base: t.outside_memory as *mut _, iov_len: bytes.len() };
            let (here, there) = ((&raw const here) as usize, (&raw const there) as usize);
            syscall(libc::SYS_process_vm_writev, [t.outside as usize, here, 1, there, 1]);
        }),
        Attempt::effect(road, "process_vm_readv", |t| {
            let mut bytes = [0u8; 16];
            let here = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            let there = libc::iovec { iov_base: t.outside_memory as *mut _, iov_len: bytes.len() };
            let (here, there) = ((&raw const here) as usize, (&raw const there) as usize);
            syscall(libc::SYS_process_vm_readv, [t.outside as usize, here, 1, there, 1])
        }),
        Attempt::sends(road, "memory of another process", |t| {
            let memory = fs::OpenOptions::new().write(true).open(format!("/proc/{}/mem", t.outside));
            let _ = memory.map(|memory| memory.write_at(t.marker(), t.outside_memory));
        }),
        Attempt::sends(road, "descriptor of another process", |t| {
            // Its standard output is a pipe to the witness.
            let output = fs::OpenOptions::new().write(true).open(format!("/proc/{}/fd/1", t.outside));
            let _ = output.map(|mut output| output.write_all(t.marker()));
        }),
        Attempt::effect(road, "environment of another process", |t| {
            fs::read(format!("/proc/{}/environ", t.outside)).is_ok()
        }),
        Attempt::effect(road, SIGNAL, |t| {
            // SAFETY: a plain system call; signal 0 is only checked.
            unsafe { libc::kill(t.outside, 0) == 0 }
        }),
    ]
}

/// Asks the daemon; whether it let us speak.
fn asks(target: &Target, request: &serde_json::Value) -> bool {
    let answer = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(&target.control)?;
        writeln!(stream, "{request}")?;
        let mut answer = [0; 1024];
        let n = stream.read(&mut answer)?;
        Ok(String::from_utf8_lossy(answer.get(..n).unwrap_or_default()).into_owned())
    };
    answer().is_ok_and(|answer| !answer.is_empty() && !answer.contains("\"denied\""))
}

/// A path in a form that system calls take.
fn c(path: &str) -> CString {
    CString::new(path).unwrap_or_default()
}

fn daemon() -> Vec<Attempt> {
    let road = Road::Daemon;
    vec![
        Attempt::effect(road, "asks for what is held", |t| asks(t, &json!({"v": 1, "request": "held"}))),
        Attempt::effect(road, "approves its own hold", |t| {
            asks(t, &json!({"v": 1, "request": "approve", "id": t.hold, "reason": "doctor"}))
        }),
        Attempt::effect(road, "opens a session of its own", |t| {
            asks(
                t,
                &json!({"v": 1, "request": "open-session", "workload": t.workload, "command": ["doctor"],
                "intent": "doctor"}),
            )
        }),
        Attempt::effect(road, "port of the enforcer", |t| {
            let fd = socket(INET, libc::SOCK_STREAM, 0);
            on(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT);
            bind(fd, address(t, To::Loopback4, t.enforcer)) == 0
        }),
        Attempt::effect(road, "looks at the pins", |t| fs::read_dir(&t.pins).is_ok()),
        Attempt::effect(road, "opens a pin", |t| {
            // BPF_OBJ_GET of the first link; the descriptor is closed with this process.
            let path = first_file(std::path::Path::new(&t.pins)).map(|path| c(&path.display().to_string()));
            path.is_some_and(|path| {
                let attributes: [u64; 2] = [path.as_ptr() as u64, 0];
                syscall(libc::SYS_bpf, [7, attributes.as_ptr() as usize, 16, 0, 0])
            })
        }),
        // What became of the decoy, the witness sees.
        Attempt::sends(road, "renames a pin", |t| {
            let _ = fs::rename(&t.decoy, format!("{}2", t.decoy));
        }),
        Attempt::sends(road, "removes a pin", |t| {
            let _ = fs::remove_dir(&t.decoy);
        }),
    ]
}

/// Any pinned object: neither a folder nor one of the kernel's own files.
fn first_file(dir: &std::path::Path) -> Option<std::path::PathBuf> {
    let entries = fs::read_dir(dir).ok()?.flatten().filter(|entry| !entry.file_name().to_string_lossy().contains('.'));
    entries.into_iter().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() { first_file(&path) } else { Some(path) }
    })
}

fn cgroup_root() -> String {
    crate::config::cgroup::root().map_or_else(|_| "/sys/fs/cgroup".into(), |root| root.display().to_string())
}

fn cgroups() -> Vec<Attempt> {
    let road = Road::Cgroups;
    let joins = |folder: &str| fs::write(format!("{folder}/cgroup.procs"), "0").is_ok();
    vec![
        Attempt::effect(road, "joins the root cgroup", move |_| joins(&cgroup_root())),
        Attempt::effect(road, "joins the cgroup above its own", move |_| {
            let own = crate::config::cgroup::of_process(std::process::id()).unwrap_or_default();
            let above = own.rsplit_once('/').map_or("", |(above, _)| above);
            joins(&format!("{}{above}", cgroup_root()))
        }),
        Attempt::effect(road, "joins the cgroup of another process", move |t| {
            let other = crate::config::cgroup::of_process(t.outside.cast_unsigned()).unwrap_or_default();
            joins(&format!("{}{other}", cgroup_root()))
        }),
        Attempt::effect(road, "makes a cgroup", |_| {
            let folder = format!("{}/portcullis-escape-{}", cgroup_root(), std::process::id());
            fs::create_dir(&folder).is_ok() && fs::remove_dir(&folder).is_ok()
        }),
        Attempt::effect(road, "makes a cgroup below its own", |_| {
            let own = crate::config::cgroup::of_process(std::process::id()).unwrap_or_default();
            let folder = format!("{}{own}/portcullis-escape-{}", cgroup_root(), std::process::id());
            fs::create_dir(&folder).is_ok() && fs::remove_dir(&folder).is_ok()
        }),
        Attempt::effect(road, "clone3 into a cgroup", |_| {
            // struct clone_args: flags CLONE_INTO_CGROUP, and the folder of the root cgroup.
            let Ok(folder) = fs::File::open(cgroup_root()) else { return false };
            let mut arguments = [0u64; 11];
            arguments[0] = 0x2_0000_0000;
            arguments[4] = libc::SIGCHLD as u64;
            arguments[10] = u64::from(folder.as_raw_fd().cast_unsigned());
            // SAFETY: the arguments live until the call returns; the child ends at once.
            let child = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
            if child == 0 {
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) };
            }
            child > 0
        }),
    ]
}
