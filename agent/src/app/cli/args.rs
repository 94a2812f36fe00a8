//! The command line, as clap derives it.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::config::parse_duration;

/// Stands between AI-agent processes and every backend they use.
#[derive(Debug, Parser)]
#[command(
    name = "portcullis",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 ok, 1 failed, 2 usage, 3 denied, 4 daemon not reachable."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Settings file [default: /etc/portcullis/portcullis.toml].
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The daemon's control socket [default: $PORTCULLIS_SOCKET, or as the settings say].
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// How a listing is printed.
#[derive(Clone, Copy, Debug, Args)]
pub struct Form {
    /// Print JSON, an object per line, in place of a table.
    #[arg(long)]
    pub json: bool,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground.
    ///
    /// Reads the settings and policies, takes hold of the workloads' cgroups, and serves until SIGTERM. SIGHUP reads the
    /// policies again.
    #[command(after_help = "Example:\n  portcullis daemon --config /etc/portcullis/portcullis.toml")]
    Daemon,
    /// Run a command as a governed session of a workload.
    ///
    /// The command gets a cgroup of its own and no way to a backend but through the enforcer. The session ends with its
    /// last process. Exits as the command does.
    #[command(
        after_help = "Example:\n  portcullis run --workload support-bot --intent 'refund order 17' -- psql -h orders.db.internal"
    )]
    Run(Run),
    /// List the commands that wait for a reviewer.
    #[command(after_help = "Examples:\n  portcullis held --watch\n  portcullis held 7k2m")]
    Held {
        /// Show this hold in full.
        id: Option<String>,
        /// Print the list again at each change.
        #[arg(long, conflicts_with = "id")]
        watch: bool,
        #[command(flatten)]
        form: Form,
    },
    /// Let a held command go on.
    #[command(after_help = "Example:\n  portcullis approve 7k2m --reason 'checked with ops'")]
    Approve {
        /// The hold.
        id: String,
        /// Also let this session send commands of this shape for so long.
        #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
        grant: Option<Duration>,
        /// Why; recorded.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        form: Form,
    },
    /// Refuse a held command.
    #[command(after_help = "Example:\n  portcullis deny 7k2m --reason 'use the replica'")]
    Deny {
        /// The hold.
        id: String,
        /// Why; recorded, and told to the agent.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        form: Form,
    },
    /// List the grants that approvals opened, or take one back.
    #[command(after_help = "Examples:\n  portcullis grants\n  portcullis grants revoke g4xq")]
    Grants {
        /// What to do with them.
        #[command(subcommand)]
        action: Option<GrantAction>,
        #[command(flatten)]
        form: Form,
    },
    /// List the sessions, live and recorded.
    #[command(after_help = "Example:\n  portcullis sessions --json")]
    Sessions {
        /// Read this record folder in place of asking the daemon.
        #[arg(long, value_name = "DIR")]
        record: Option<PathBuf>,
        #[command(flatten)]
        form: Form,
    },
    /// Show a session as it happened.
    #[command(after_help = "Example:\n  portcullis replay 01JD --speed 4")]
    Replay {
        /// The session, or the beginning of its id.
        session: String,
        /// Keep the time between events, divided by this; without it, print all at once.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
        speed: Option<u32>,
        /// Read this record folder in place of asking the daemon.
        #[arg(long, value_name = "DIR")]
        record: Option<PathBuf>,
        #[command(flatten)]
        form: Form,
    },
    /// Show events as they are recorded.
    #[command(after_help = "Example:\n  portcullis follow --json")]
    Follow {
        #[command(flatten)]
        form: Form,
    },
    /// Tell how the daemon is.
    #[command(after_help = "Example:\n  portcullis status")]
    Status {
        #[command(flatten)]
        form: Form,
    },
    /// Read the policies again.
    #[command(after_help = "Example:\n  portcullis reload")]
    Reload,
    /// End a session's rights at once, close its connections and freeze its processes.
    #[command(after_help = "Example:\n  portcullis quarantine 01JD")]
    Quarantine {
        /// The session, or the beginning of its id.
        session: String,
    },
    /// Check the record.
    #[command(after_help = "Example:\n  portcullis audit verify")]
    Audit {
        /// What to do.
        #[command(subcommand)]
        action: AuditAction,
    },
    /// Check, explain and test policies. Needs no daemon.
    #[command(after_help = "Example:\n  portcullis policy check policies/support-bot.toml")]
    Policy {
        /// What to do.
        #[command(subcommand)]
        action: PolicyAction,
    },
    /// Remove what is pinned in the kernel, which enforces on while no daemon runs. Stop the daemon first.
    #[command(after_help = "Example:\n  systemctl disable --now portcullis.socket portcullis && portcullis uninstall")]
    Uninstall {
        /// Do so although governed processes run: they get every road.
        #[arg(long)]
        leave_ungoverned: bool,
    },
    /// Check this host and the daemon, and try every way out of a session.
    ///
    /// Each check is closed, open (the host could close it) or cannot (the host lacks what would close it). The ways out
    /// are tried from inside a real session of each workload, and watched where they would arrive. Changes nothing.
    ///
    /// Exits with 1 if anything is open, with 4 if no daemon answers.
    #[command(after_help = "Examples:\n  portcullis doctor --workload support-bot\n  portcullis doctor --json")]
    Doctor(Doctor),
    /// Try to get out of a session, as asked on standard input: the inside of `doctor`.
    #[command(hide = true, after_help = "Example:\n  portcullis escape-attempts < requests")]
    EscapeAttempts,
    /// Do for a daemon what only root may do, as asked on standard input.
    #[command(
        hide = true,
        after_help = "Example:\n  portcullis privileged-helper < /run/a-socket    # `portcullis daemon` does it"
    )]
    PrivilegedHelper,
    /// Print a completion script.
    #[command(after_help = "Example:\n  portcullis completions bash > /etc/bash_completion.d/portcullis")]
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    #[command(after_help = "Example:\n  portcullis man | man -l -")]
    Man,
}

/// See [`Command::Run`].
#[derive(Debug, Args)]
pub struct Run {
    /// The workload whose policy governs the command.
    #[arg(long, short, value_name = "NAME")]
    pub workload: String,
    /// Why it runs; recorded, and shown to reviewers.
    #[arg(long, value_name = "TEXT")]
    pub intent: Option<String>,
    /// How long the session may live; at most what the policy says.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub ttl: Option<Duration>,
    /// Run the command as this user; root only.
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Run the command as root of this host, who cannot be kept in.
    #[arg(long, conflicts_with = "user")]
    pub i_know_root_escapes: bool,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub command: Vec<std::ffi::OsString>,
}

/// See [`Command::Doctor`].
#[derive(Debug, Args)]
pub struct Doctor {
    /// Try the ways out of this workload only; may be given more than once [default: all that have a policy].
    #[arg(long, short, value_name = "NAME")]
    pub workload: Vec<String>,
    /// Run the attempts as this user; root only [default: who called sudo, else nobody].
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    #[command(flatten)]
    pub form: Form,
}

/// See [`Command::Grants`].
#[derive(Debug, Subcommand)]
pub enum GrantAction {
    /// Take a grant back; the connections that used it are closed.
    #[command(after_help = "Example:\n  portcullis grants revoke g4xq")]
    Revoke {
        /// The grant.
        id: String,
    },
}

/// See [`Command::Audit`].
#[derive(Debug, Subcommand)]
pub enum AuditAction {
    /// Find the first byte of the record that was changed, removed or moved.
    #[command(after_help = "Example:\n  portcullis audit verify --record /backup/record")]
    Verify {
        /// Check this record folder in place of asking the daemon.
        #[arg(long, value_name = "DIR")]
        record: Option<PathBuf>,
        #[command(flatten)]
        form: Form,
    },
}

/// See [`Command::Policy`].
#[derive(Debug, Subcommand)]
pub enum PolicyAction {
    /// Check policy files, or folders of them.
    #[command(after_help = "Example:\n  portcullis policy check /etc/portcullis/policies")]
    Check {
        /// Files or folders [default: the policy folder of the settings].
        paths: Vec<PathBuf>,
        #[command(flatten)]
        form: Form,
    },
    /// Print a workload's rules.
    #[command(after_help = "Example:\n  portcullis policy show --workload support-bot --expanded")]
    Show {
        /// The workload; all where absent.
        #[arg(long, short, value_name = "NAME")]
        workload: Option<String>,
        /// With the rules that tiers, autonomy and the house add.
        #[arg(long)]
        expanded: bool,
        /// Folder of policies [default: as the settings say].
        #[arg(long, value_name = "DIR")]
        policies: Option<PathBuf>,
        #[command(flatten)]
        form: Form,
    },
    /// Tell what would be decided about a command, and why.
    #[command(
        after_help = "Example:\n  portcullis policy explain --workload support-bot --upstream orders 'DELETE FROM orders'"
    )]
    Explain {
        /// The workload.
        #[arg(long, short, value_name = "NAME")]
        workload: String,
        /// The upstream.
        #[arg(long, short, value_name = "NAME")]
        upstream: String,
        /// Database, where rules ask for it.
        #[arg(long, value_name = "NAME")]
        database: Option<String>,
        /// Intent of the session, where rules ask for it.
        #[arg(long, value_name = "TEXT")]
        intent: Option<String>,
        /// Folder of policies [default: as the settings say].
        #[arg(long, value_name = "DIR")]
        policies: Option<PathBuf>,
        #[command(flatten)]
        form: Form,
        /// The command.
        command: String,
    },
    /// Run the decision cases (`NAME.cases.toml`) beside policy files.
    #[command(after_help = "Example:\n  portcullis policy test policies/support-bot.toml")]
    Test {
        /// Policy files or folders [default: the policy folder of the settings].
        paths: Vec<PathBuf>,
        #[command(flatten)]
        form: Form,
    },
    /// Print the JSON schema of policy files, for editors.
    #[command(after_help = "Example:\n  portcullis policy schema > policy.schema.json")]
    Schema,
}
