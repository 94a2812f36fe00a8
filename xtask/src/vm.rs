//! `cargo xtask vm`: a small Debian with a kernel and a systemd of its own, to try what this host cannot show: an older
//! kernel, and a package on a system that boots. Built once, below the target folder; each run starts from the same disk
//! and leaves nothing on it.
//!
//! By software emulation it boots in a quarter of a minute, and is some ten times slower than the host; KVM is used where
//! the processor has it.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{setup, shell};

/// Debian 12, whose kernel is 6.1.
const SUITE: &str = "bookworm";
const MIRROR: &str = "http://deb.debian.org/debian";

/// What the tests use in there.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "dbus",
    "git",
    "initramfs-tools",
    "iproute2",
    "linux-image-amd64",
    "lz4",
    // For podman: debootstrap does not choose among providers of a virtual package.
    "netavark",
    "nodejs",
    "openssh-client",
    "openssl",
    "podman",
    "postgresql",
    "postgresql-contrib",
    "procps",
    "python3",
];

/// Turns an installed system, the working folder, into one that boots fast, runs what it is told and powers off.
const CONFIGURE: &str = r#"
mkdir -p share
echo vm > etc/hostname
echo '127.0.0.1 localhost vm' > etc/hosts
cat > etc/fstab <<'END'
/dev/vda / ext4 rw,noatime 0 1
share /share 9p trans=virtio,version=9p2000.L,msize=262144 0 0
END
cat > etc/systemd/system/vm-run.service <<'END'
[Unit]
Description=What the host asked for
RequiresMountsFor=/share
After=multi-user.target
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'until [ -c /dev/virtio-ports/out ]; do sleep 0.1; done; { /bin/sh -e /share/run 2>&1; echo $? > /share/exit; } | cat > /dev/virtio-ports/out; sync'
END
cat > etc/systemd/system/vm.target <<'END'
[Unit]
Requires=multi-user.target vm-run.service
After=multi-user.target
END
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer getty.target postgresql.service systemd-pstore.service systemd-timesyncd.service; do
    ln -sf /dev/null etc/systemd/system/$unit
done
printf 'MODULES=list\nCOMPRESS=lz4\n' > etc/initramfs-tools/conf.d/vm
printf '%s\n' virtio_pci virtio_blk virtio_console ext4 9p 9pnet_virtio > etc/initramfs-tools/modules
mount -t proc proc proc
chroot . update-initramfs -u
umount proc
rm -rf var/cache/apt/archives/*.deb var/lib/apt/lists/* usr/share/doc/* usr/share/locale/* usr/share/man/*
"#;

#[derive(clap::Args)]
pub struct Arguments {
    /// Commands of a shell, run by root of the machine
    #[arg(default_value = "uname -a")]
    script: String,
}

/// Runs a script in the machine, its output on ours.
pub fn run(arguments: &Arguments) -> Result<()> {
    let machine = Machine::prepare()?;
    let code = machine.run(&[], &arguments.script, Duration::from_secs(600), |line| println!("{line}"))?;
    ensure!(code == 0, "the script ended with {code}");
    Ok(())
}

/// A disk that was built, and the kernel that boots it.
pub struct Machine {
    place: PathBuf,
}

impl Machine {
    /// Builds what is not there yet: a minute and a gigabyte.
    pub fn prepare() -> Result<Self> {
        setup::need("qemu-system-x86_64", "qemu-system-x86")?;
        setup::need("debootstrap", "debootstrap")?;
        setup::need("mke2fs", "e2fsprogs")?;
        let machine = Self { place: shell::target_dir().join("vm") };
        let recipe = format!("{SUITE} {MIRROR} {PACKAGES:?} {CONFIGURE}");
        if fs::read_to_string(machine.at("recipe")).ok().as_deref() != Some(&recipe) {
            machine.build()?;
            fs::write(machine.at("recipe"), recipe)?;
        }
        Ok(machine)
    }

    fn build(&self) -> Result<()> {
        println!("building a virtual machine (a minute or two) ...");
        let root = self.at("root");
        if self.place.exists() {
            fs::remove_dir_all(&self.place)?;
        }
        fs::create_dir_all(&self.place)?;
        let include = format!("--include=systemd-sysv,{}", PACKAGES.join(","));
        let mut debootstrap = Command::new("debootstrap");
        shell::run_quietly(debootstrap.args(["--variant=minbase", &include, SUITE]).arg(&root).arg(MIRROR))?;
        // In a mount namespace of its own: nothing stays mounted, also after a failure.
        let mut configure = Command::new("unshare");
        shell::run_quietly(configure.args(["--mount", "sh", "-e", "-c", CONFIGURE]).current_dir(&root))?;
        for (link, file) in [("vmlinuz", "kernel"), ("initrd.img", "initrd")] {
            fs::copy(root.join(link), self.at(file)).with_context(|| format!("no {link} was installed"))?;
        }
        let mut disk = Command::new("mke2fs");
        disk.args(["-q", "-t", "ext4", "-O", "^has_journal", "-E", "root_owner=0:0", "-d"]).arg(&root);
        shell::run_quietly(disk.arg(self.at("disk")).arg("4G"))?;
        fs::remove_dir_all(&root)?;
        Ok(())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    /// Boots it, runs a script in a folder's company and powers it off; returns the script's exit code. `files` are in
    /// `/share` there, under their own names. Each line of output is handed on as it comes.
    pub fn run(&self, files: &[&Path], script: &str, limit: Duration, mut on_line: impl FnMut(&str)) -> Result<i32> {
        let folder = tempfile::Builder::new().prefix("run-").tempdir_in(&self.place)?;
        let share = folder.path().join("share");
        fs::create_dir(&share)?;
        for file in files {
            let name = file.file_name().context("a file without a name")?;
            fs::copy(file, share.join(name)).with_context(|| format!("{} cannot be shared", file.display()))?;
        }
        fs::write(share.join("run"), script)?;
        let mut machine = Guard(self.boot(folder.path(), &share)?);
        let output = machine.0.stdout.take().context("no output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                    return;
                }
            }
        });
        let end = std::time::Instant::now() + limit;
        loop {
            match lines.recv_timeout(end.saturating_duration_since(std::time::Instant::now())) {
                Ok(line) => on_line(&line),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => bail!("the machine does not end within {limit:?}"),
            }
        }
        machine.0.wait()?;
        match fs::read_to_string(share.join("exit")) {
            Ok(code) => code.trim().parse().context("an exit code"),
            Err(_) => {
                let read = |name| fs::read(folder.path().join(name)).unwrap_or_default();
                let said = [read("qemu.log"), read("console.log")].concat();
                bail!("the machine ended early: {}", String::from_utf8_lossy(&said))
            }
        }
    }

    /// Starts it; its logs go to `folder`.
    fn boot(&self, folder: &Path, share: &Path) -> Result<Child> {
        let processors = thread::available_parallelism().map_or(1, usize::from).to_string();
        let option = |option: &str, path: &Path| format!("{option}={}", path.display());
        // It ends with us, also where we are killed.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
        if has_kvm() {
            qemu.args(["-accel", "kvm", "-cpu", "host"]);
        } else {
            qemu.args(["-accel", "tcg", "-cpu", "max"]);
        }
        qemu.args(["-smp", &processors, "-m", "3G", "-display", "none", "-nodefaults", "-no-reboot", "-nic", "none"]);
        qemu.arg("-kernel").arg(self.at("kernel")).arg("-initrd").arg(self.at("initrd")).arg("-append");
        // Every security module that the tests speak of; mitigations cost much under emulation and change no answer.
        qemu.arg(
            "root=/dev/vda rw console=ttyS0 quiet panic=-1 mitigations=off lsm=landlock,lockdown,yama,apparmor,bpf \
             systemd.unit=vm.target systemd.show_status=0",
        );
        // Written over in a file that is gone with the process.
        let disk = option("if=virtio,format=raw,cache=unsafe,snapshot=on,file", &self.at("disk"));
        qemu.arg("-drive").arg(disk).env("TMPDIR", folder);
        qemu.arg("-fsdev").arg(option("local,id=share,security_model=none,path", share));
        qemu.args(["-device", "virtio-9p-pci,fsdev=share,mount_tag=share", "-device", "virtio-rng-pci"]);
        qemu.arg("-serial").arg(format!("file:{}", folder.join("console.log").display()));
        qemu.args(["-device", "virtio-serial", "-chardev", "file,id=out,path=/dev/stdout"]);
        qemu.args(["-device", "virtserialport,chardev=out,name=out"]);
        let log = File::create(folder.join("qemu.log"))?;
        let child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn();
        child.context("qemu cannot be started")
    }
}

/// A machine that ends with us, also where something fails.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether machines run by software emulation.
pub fn is_emulated() -> bool {
    !has_kvm()
}

/// Whether the processor virtualizes: `/dev/kvm` alone may be one that boots no ordinary kernel.
fn has_kvm() -> bool {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let virtualizes = flags.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm"));
    virtualizes && File::options().read(true).write(true).open("/dev/kvm").is_ok()
}
