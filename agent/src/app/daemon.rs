//! The daemon: everything is opened in the order in which it is needed, and nothing is served before all of it is.
//!
//! If anything fails at start, nothing runs: what the last daemon pinned in the kernel stays and refuses. After that,
//! failures narrow what is served and never widen it.

use std::{
    fmt,
    io::{self, IsTerminal},
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use miette::{IntoDiagnostic, WrapErr, miette};
use sd_notify::NotifyState;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use super::{
    accept,
    claims::Claims,
    desk::ControlDesk,
    governor::{GovernedFence, Governor, current},
    harden, journal,
    lanes::{self, Lanes},
    lifecycle::{self, Lifecycle},
    listening,
    namespaces::Namespaces,
    place::{self, Place},
    policies::{self, Policies},
    privileges, refusals,
    resolver::Resolver,
    supervisor,
    trust::{self, Trust},
};
use crate::{
    bpf::{Kernel, KernelSettings, Pins},
    config::{LogFormat, Settings},
    control::peer::Fence,
    hold::{HoldSettings, HoldStore},
    identity::Sessions,
    net::{self, Net, handed::Sockets},
    record::{Event, RecordSettings, Recorder},
    secrets::Secrets,
    session::House,
    wire::{Budget, Limits},
};

/// Time between checks that the kernel's links still stand.
const VERIFY_EVERY: Duration = Duration::from_secs(10);

/// How a daemon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It was told to.
    Well,
    /// It failed, and has said why.
    Failed,
    /// Its privileged helper is gone: it is to be started again.
    Bereft,
}

/// Runs until SIGTERM or SIGINT.
pub(super) fn run(settings: Settings) -> miette::Result<Ended> {
    if !nix::unistd::geteuid().is_root() {
        return Err(miette!(help = "run it with sudo, or start the service", "the daemon must be started by root"));
    }
    logging(&settings.log.filter, settings.log.format)?;
    let Some(sockets) = listening::take()? else {
        // First its cgroup: the sockets belong to it for good.
        place::own_cgroup(&settings)?;
        return supervisor::run(listening::make(&settings)?);
    };
    if std::env::var_os(net::handed::VARIABLE).is_some() {
        // Whoever takes the supervisor's place makes sockets of its own.
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).into_diagnostic()?;
    }
    let user = privileges::own_user(&settings)?;
    for lack in harden::process(&user) {
        tracing::warn!("{lack}");
    }
    // Invalid policies are told before anything is touched.
    let policies = policies::load(&settings.policy_dir).map_err(|rendered| {
        miette!(
            help = "`portcullis policy check` checks them without a daemon",
            "the policies are not valid:\n{rendered}"
        )
    })?;
    let place = Place::prepare(&settings, sockets, &user)?;
    let policies = if user.is_root() {
        policies
    } else {
        place.leave(&settings, &user)?;
        // Not only root must be able to read them: they are read again when they change.
        policies::load(&settings.policy_dir).map_err(|rendered| {
            miette!(
                help = format!("make {} readable for user `{}`", settings.policy_dir.display(), user.name),
                "the policies cannot be read by the daemon's user:\n{rendered}"
            )
        })?
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("portcullis").build();
    runtime.into_diagnostic()?.block_on(serve(Arc::new(settings), policies, place))
}

async fn serve(settings: Arc<Settings>, policies: crate::policy::PolicySet, place: Place) -> miette::Result<Ended> {
    let Place { own, root, sockets: Sockets { listeners, resolvers }, addresses, helper, control, pins } = place;
    let trust = Arc::new(Trust::begin(&settings, &policies)?);

    let recorder = Recorder::open(&record_settings(&settings)).into_diagnostic().wrap_err_with(|| {
        format!("the record in {} cannot be opened; nothing runs that is not recorded", settings.record_dir().display())
    })?;
    let (sessions, restored) = Sessions::open(settings.sessions_dir()).into_diagnostic()?;
    for (path, why) in &restored.unreadable {
        tracing::error!(path = %path.display(), why, "a session file cannot be read; it gives no rights");
    }
    let hold_settings = HoldSettings { reviewers: settings.reviewers.clone(), ..HoldSettings::default() };
    let journal = Arc::new(journal::HoldJournal { recorder: recorder.clone(), sessions: sessions.clone() });
    let holds = HoldStore::with_journal(hold_settings, journal);

    let (kernel, home) = open_kernel(place::kernel_settings(&settings, &root), pins, &own, &listeners, &addresses)?;
    let kernel = Arc::new(kernel);
    let governor = Arc::new(Governor::new(root, own, kernel.clone(), helper.clone()));

    let network = Arc::new(Net::new(trust.ca().clone()));
    let secrets = Secrets::new(std::env::var_os("CREDENTIALS_DIRECTORY").map(Into::into))
        .dialing(network.clone())
        .keeping(settings.state_dir.join("tokens"))
        .opened_by({
            let helper = helper.clone();
            Arc::new(move |path| helper.credential(path))
        });
    let limits = Limits { memory: settings.limits.memory, ..Limits::default() };
    let house = Arc::new(House {
        policies: ArcSwap::from_pointee(policies),
        recorder,
        holds,
        sessions,
        secrets: Arc::new(secrets),
        network,
        live: Default::default(),
        memory: Budget::new(limits.memory),
        limits,
        mask_key: mask_key()?,
        protocols: crate::protocol::all(),
        connections: AtomicU64::new(0),
        answered: crate::session::Answered::default(),
        compiled: Mutex::default(),
    });
    let stop_accepting = CancellationToken::new();
    let lanes = Arc::new(Lanes::open().into_diagnostic()?);
    let resolver = Arc::new(Resolver::new(house.clone(), kernel.clone(), helper.clone()));
    for socket in listening::at_home(resolvers, &home) {
        resolver.serve(socket, CancellationToken::new()).into_diagnostic()?;
    }
    kernel.heartbeat().into_diagnostic()?;
    governor.govern(&house.policies.load())?;
    let serve = {
        let (house, kernel, helper, lanes, limit) =
            (house.clone(), kernel.clone(), helper.clone(), lanes.clone(), settings.limits.connections);
        move |listener, stop: CancellationToken| {
            let listener = TcpListener::from_std(listener)?;
            let (lanes, house, kernel, helper) = (lanes.clone(), house.clone(), kernel.clone(), helper.clone());
            let take = move |stream, _, place| accept::arrival(&lanes, (&house, &kernel, &helper), stream, place);
            Ok::<_, io::Error>(net::listener::serve(listener, limit, stop, take))
        }
    };
    let namespaces = {
        let serve = serve.clone();
        let elsewhere = move |listener, stop| {
            let serving = serve(listener, stop)?;
            tokio::spawn(async move {
                if let Err(error) = serving.await {
                    tracing::error!(%error, "a listener in another network namespace failed");
                }
            });
            Ok(())
        };
        Arc::new(Namespaces::new(
            kernel.clone(),
            governor.clone(),
            Box::new(elsewhere),
            resolver.clone(),
            stop_accepting.clone(),
        ))
    };
    let lifecycle = Arc::new(Lifecycle::new(house.clone(), governor.clone(), settings.clone(), namespaces));
    lifecycle.adopt(&restored.adopted, &restored.lost);
    let policies = Arc::new(Policies::new(settings.policy_dir.clone(), house.clone(), governor.clone(), trust.clone()));

    let stop = CancellationToken::new();
    let problems = Arc::new(Mutex::new(Vec::<String>::new()));
    spawn_upkeep(&house, &lifecycle, &governor, &kernel, &settings, &problems, &lanes, &stop);
    tokio::spawn(watch_policies(policies.clone()));
    spawn_until(&stop, trust::keep(trust, house.clone()));
    spawn_until(&stop, resolver.clone().run());
    let claims = Claims::new(house.clone(), governor.clone(), lifecycle.clone());
    spawn_until(&stop, async move { claims.run().await });

    let listen: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    let desk = Arc::new(ControlDesk {
        house: house.clone(),
        lifecycle: lifecycle.clone(),
        policies: policies.clone(),
        governor: governor.clone(),
        settings: settings.clone(),
        listen: listen.clone(),
        problems: {
            let problems = problems.clone();
            Arc::new(move || problems.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone())
        },
        kernel: kernel.clone(),
        resolver: resolver.clone(),
        ready_at: Instant::now(),
        last_barred: Mutex::default(),
    });
    let fence: Arc<dyn Fence> = {
        let house = house.clone();
        Arc::new(GovernedFence::new(governor.clone(), move || current(&house.policies)))
    };
    let control = tokio::spawn(control.run(desk, fence, stop.clone()));

    let failed = CancellationToken::new();
    for listener in listeners {
        let serving = serve(listener, stop_accepting.clone()).into_diagnostic()?;
        let failed = failed.clone();
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the listener failed");
                failed.cancel();
            }
        });
    }
    {
        let lifecycle = lifecycle.clone();
        tokio::task::spawn_blocking(move || lifecycle.sweep()).await.into_diagnostic()?;
    }
    let bereft = CancellationToken::new();
    helper.watch(bereft.clone()).into_diagnostic()?;

    harden::calls()?;
    let hash = house.policies.load().hash().to_owned();
    house.recorder.append(Event::daemon(format!("started, policies {hash}"))).into_diagnostic()?;
    tracing::info!(listen = ?listen, socket = %settings.control_socket().display(), policies = hash, "ready");
    tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
    let why = signals(&policies, &failed, &bereft).await?;

    tracing::info!(why, "stopping: no new connections, live ones may finish");
    tell(&[NotifyState::Stopping]);
    stop_accepting.cancel();
    // Without the helper nobody ends what must end: it is not waited for.
    let patience = if bereft.is_cancelled() { Duration::ZERO } else { settings.limits.drain };
    house.live.drain(patience).await;
    if let Err(error) = kernel.stop() {
        tracing::warn!(%error, "the kernel side was not told; it refuses when heartbeats stay away");
    }
    stop.cancel();
    let _ = control.await;
    house.recorder.append(Event::daemon(format!("stopped: {why}"))).into_diagnostic()?;
    let recorder = house.recorder.clone();
    tokio::task::spawn_blocking(move || recorder.close()).await.into_diagnostic()?.into_diagnostic()?;
    match () {
        () if failed.is_cancelled() => Err(miette!("the listener failed")),
        () if bereft.is_cancelled() => Ok(Ended::Bereft),
        () => Ok(Ended::Well),
    }
}

/// Waits for the end, reloading on SIGHUP meanwhile.
async fn signals(
    policies: &Arc<Policies>,
    failed: &CancellationToken,
    bereft: &CancellationToken,
) -> miette::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate()).into_diagnostic()?;
    let mut interrupt = signal(SignalKind::interrupt()).into_diagnostic()?;
    let mut hangup = signal(SignalKind::hangup()).into_diagnostic()?;
    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => return Ok("SIGTERM"),
            _ = interrupt.recv() => return Ok("SIGINT"),
            () = failed.cancelled() => return Ok("the listener failed"),
            () = bereft.cancelled() => return Ok("the privileged helper is gone"),
            _ = hangup.recv() => {
                if let Ok(now) = NotifyState::monotonic_usec_now() {
                    tell(&[NotifyState::Reloading, now]);
                }
                // Reported by reload itself.
                let _ = policies.reload("SIGHUP").await;
                tell(&[NotifyState::Ready]);
            }
        }
    }
}

/// Everything that happens by the clock. All of it runs on the main runtime: if that hangs, heartbeats stop, and the
/// kernel refuses. If a lane hangs, the service manager starts the daemon anew.
#[expect(clippy::too_many_arguments, reason = "what happens by the clock has to do with everything")]
fn spawn_upkeep(
    house: &Arc<House>,
    lifecycle: &Arc<Lifecycle>,
    governor: &Arc<Governor>,
    kernel: &Arc<Kernel>,
    settings: &Settings,
    problems: &Arc<Mutex<Vec<String>>>,
    lanes: &Arc<Lanes>,
    stop: &CancellationToken,
) {
    let beat = {
        let kernel = kernel.clone();
        let mut tick = tokio::time::interval(settings.kernel.heartbeat);
        async move {
            loop {
                tick.tick().await;
                if let Err(error) = kernel.heartbeat() {
                    tracing::error!(%error, "heartbeat failed: the kernel will refuse connections");
                }
            }
        }
    };
    let lanes = lanes.clone();
    let watchdog = async move {
        let Some(limit) = sd_notify::watchdog_enabled() else { return };
        let mut tick = tokio::time::interval(limit / 2);
        let (mut turn, mut turned) = (Box::pin(lanes.turn()), Instant::now());
        loop {
            tick.tick().await;
            if turn.as_mut().now_or_never().is_some() {
                (turn, turned) = (Box::pin(lanes.turn()), Instant::now());
            }
            // A huge statement keeps its lane for seconds. No agent may stop the daemon with that.
            if turned.elapsed() < lanes::HUNG {
                tell(&[NotifyState::Watchdog]);
            }
        }
    };
    let expire = {
        let (house, lifecycle) = (house.clone(), lifecycle.clone());
        async move {
            loop {
                let session = house.sessions.next_expired().await;
                lifecycle.ended(&session, crate::identity::EndReason::Expired);
            }
        }
    };
    let timer = {
        let house = house.clone();
        async move { house.holds.run_timer().await }
    };
    let sweep = {
        let lifecycle = lifecycle.clone();
        async move {
            loop {
                tokio::time::sleep(lifecycle::SWEEP).await;
                let lifecycle = lifecycle.clone();
                let _ = tokio::task::spawn_blocking(move || lifecycle.sweep()).await;
            }
        }
    };
    let verify = {
        let (kernel, problems) = (kernel.clone(), problems.clone());
        async move {
            loop {
                let kernel = kernel.clone();
                let found = tokio::task::spawn_blocking(move || kernel.verify()).await.unwrap_or_default();
                let found: Vec<String> = found.iter().map(ToString::to_string).collect();
                {
                    let mut known = problems.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    for problem in found.iter().filter(|problem| !known.contains(problem)) {
                        tracing::error!("enforcement: {problem}");
                    }
                    *known = found;
                }
                tokio::time::sleep(VERIFY_EVERY).await;
            }
        }
    };
    spawn_until(stop, beat);
    spawn_until(stop, watchdog);
    spawn_until(stop, expire);
    spawn_until(stop, timer);
    spawn_until(stop, sweep);
    spawn_until(stop, verify);
    spawn_until(stop, refusals::record(house.clone(), kernel.clone(), governor.helper().clone()));
}

fn spawn_until(stop: &CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = work => {}
        }
    });
}

async fn watch_policies(policies: Arc<Policies>) {
    if let Err(error) = policies::watch(policies).await {
        tracing::warn!(%error, "policy files are not watched; use SIGHUP or `portcullis reload` after a change");
    }
}

fn open_kernel(
    settings: KernelSettings,
    pins: Pins,
    own: &str,
    listeners: &[std::net::TcpListener],
    addresses: &[SocketAddr],
) -> miette::Result<(Kernel, PathBuf)> {
    let kernel = Kernel::open_in(&settings, pins).into_diagnostic().wrap_err("the kernel side cannot be loaded")?;
    let root = &settings.cgroup_root;
    let v4 = addresses.iter().find_map(|a| if let SocketAddr::V4(v4) = a { Some(*v4) } else { None });
    let v6 = addresses.iter().find_map(|a| if let SocketAddr::V6(v6) = a { Some(*v6) } else { None });
    let v4 = v4.ok_or_else(|| miette!("no IPv4 listener"))?;
    // Those that were handed over may be of another cgroup than those that we make.
    let (home, own) = (listening::home(listeners, root)?, root.join(own.trim_start_matches('/')));
    let taken = kernel
        .set_enforcer(v4, v6, &[&home, &own])
        .and_then(|()| listeners.iter().try_for_each(|listener| kernel.add_listener(listener)));
    taken.into_diagnostic().wrap_err("the kernel side did not take our listeners")?;
    Ok((kernel, home))
}

fn record_settings(settings: &Settings) -> RecordSettings {
    let mut record = RecordSettings::new(settings.record_dir());
    if let Some(bytes) = settings.record.segment_bytes {
        record.segment_bytes = bytes;
    }
    record
}

fn mask_key() -> miette::Result<[u8; 32]> {
    let mut key = [0; 32];
    aws_lc_rs::rand::fill(&mut key).map_err(|_| miette!("the system gave no random bytes"))?;
    Ok(key)
}

/// Logs to standard error.
pub(super) fn logging(filter: &str, format: LogFormat) -> miette::Result<()> {
    use tracing_subscriber::{EnvFilter, fmt as log};
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        miette!(help = "write it as `info` or `portcullis=debug,info`", "`log.filter` is not a filter: {error}")
    })?;
    let builder = log().with_env_filter(filter).with_writer(io::stderr);
    let set = match format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    set.map_err(|error: Box<dyn std::error::Error + Send + Sync>| miette!("logging cannot be set up: {error}"))
}

/// Tells the service manager, if there is one.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// For error messages of the wiring.
impl fmt::Debug for Governor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Governor").finish_non_exhaustive()
    }
}
