//! A whole house of sessions, without a daemon and without root: policies, record, holds, secrets and the real network
//! toward the upstream. Clients come over in-memory streams.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use anyhow::Result;
use portcullis::{
    action::ProcessFacts,
    hold::{HoldSettings, HoldStore, HoldView, ReviewerIdentity},
    identity::{NewSession, Session, Sessions},
    net::{Net, RuntimeCa, Scope},
    policy::PolicySet,
    protocol,
    record::{Event, RecordSettings, Recorder, read},
    secrets::Secrets,
    session::{Answered, Arrival, House, LiveTable, serve},
    wire::{Budget, Limits},
};
use tokio::io::DuplexStream;

use crate::{PASSWORD, Server};

/// The house, and where its record lies.
pub struct TestHouse {
    /// The house.
    pub house: Arc<House>,
    /// The session that clients are in.
    pub session: Arc<Session>,
    ca: Arc<RuntimeCa>,
    dir: tempfile::TempDir,
    origin: SocketAddr,
}

/// Someone who may approve.
pub fn reviewer(name: &str) -> ReviewerIdentity {
    ReviewerIdentity { name: name.into(), uid: 4242, groups: vec!["dba".into()] }
}

impl TestHouse {
    /// A house whose only policy is `policy`. `{port}`, `{ca}` and `{password}` in it are replaced by the server's port,
    /// its CA file, and the file that holds the credential.
    pub fn new(server: &impl Server, policy: &str) -> Result<Self> {
        Self::with_limits(server, policy, Limits::default())
    }

    /// The same with other limits.
    pub fn with_limits(server: &impl Server, policy: &str, limits: Limits) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let password = dir.path().join("password");
        fs::write(&password, format!("{PASSWORD}\n"))?;
        fs::set_permissions(&password, fs::Permissions::from_mode(0o600))?;
        let policies = set(server, &password, policy)?;
        let sessions = Sessions::in_memory();
        let session = sessions.insert(NewSession {
            workload: "bot".into(),
            intent: Some("test".into()),
            cgroup_id: 1,
            cgroup_path: PathBuf::from("/nowhere"),
            operator: "tester".into(),
            ..NewSession::default()
        })?;
        let holds = HoldStore::new(HoldSettings::default());
        let timer = holds.clone();
        tokio::spawn(async move { timer.run_timer().await });
        let ca = Arc::new(RuntimeCa::new(Duration::from_secs(3600), &Scope::of(&policies))?);
        let network = Arc::new(Net::new(ca.clone()));
        let secrets = Secrets::new(None).dialing(network.clone()).keeping(dir.path().join("tokens"));
        let house = House {
            policies: arc_swap::ArcSwap::from_pointee(policies),
            recorder: Recorder::open(&RecordSettings::new(dir.path().join("record")))?,
            holds,
            sessions,
            secrets: Arc::new(secrets),
            network,
            live: LiveTable::default(),
            memory: Budget::new(limits.memory),
            limits,
            mask_key: [7; 32],
            protocols: protocol::all(),
            connections: AtomicU64::new(0),
            answered: Answered::default(),
            compiled: Mutex::new(Vec::new()),
        };
        let origin = SocketAddr::from(([127, 0, 0, 1], server.port()));
        Ok(Self { house: Arc::new(house), session, ca, dir, origin })
    }

    /// Puts another policy in force, as a reload does.
    pub fn reload(&self, server: &impl Server, policy: &str) -> Result<()> {
        let policies = set(server, &self.dir.path().join("password"), policy)?;
        self.ca.tend(&Scope::of(&policies))?;
        self.house.policies.store(Arc::new(policies));
        self.house.live.rejudge(&self.house);
        Ok(())
    }

    /// A connection, as it arrives from the redirect.
    pub fn connect(&self) -> DuplexStream {
        self.connect_to(self.origin)
    }

    /// The same of a client that wanted to go elsewhere.
    pub fn connect_to(&self, origin: SocketAddr) -> DuplexStream {
        let (client, server) = tokio::io::duplex(64 << 10);
        let arrival = Arrival {
            io: Box::new(server),
            origin,
            session: Arc::clone(&self.session),
            process: ProcessFacts { pid: 1234, uid: 1000, comm: "test".into(), exe: None },
        };
        tokio::spawn(serve(Arc::clone(&self.house), arrival));
        client
    }

    /// The file that the credential is read from.
    pub fn password_file(&self) -> PathBuf {
        self.dir.path().join("password")
    }

    /// A logged-in client. Its password is wrong on purpose: it does not matter.
    pub async fn client(&self) -> Result<tokio_postgres::Client> {
        let mut config = tokio_postgres::Config::new();
        config.user("whoever").password("wrong").dbname("shop");
        let (client, connection) = config.connect_raw(self.connect(), tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Waits until one command is held.
    pub async fn held(&self) -> HoldView {
        loop {
            if let Some(view) = self.house.holds.list().into_iter().find(|v| v.state.as_str() == "requested") {
                return view;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Everything recorded so far.
    pub fn events(&self) -> Result<Vec<Arc<Event>>> {
        read::events(self.dir.path().join("record"))?.map(|recorded| Ok(recorded?.event)).collect()
    }
}

fn set(server: &impl Server, password: &std::path::Path, policy: &str) -> Result<PolicySet> {
    let text = policy
        .replace("{port}", &server.port().to_string())
        .replace("{ca}", &server.ca().display().to_string())
        .replace("{password}", &password.display().to_string());
    PolicySet::from_texts([("bot.toml", text)]).map_err(|errors| anyhow::anyhow!("{errors:?}"))
}
