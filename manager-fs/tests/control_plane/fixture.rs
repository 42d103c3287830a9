use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use manager_fs::host::enroll::{self, Identity};
use manager_fs::manager::admin::{AdminEvent, AdminReply, AdminRequest, Long, PublishOrder, Quick, serve_admin};
use manager_fs::manager::identity::HOST_CERTIFICATE_LIFETIME;
use manager_fs::manager::whole::{Manager, ManagerOptions};
use manager_fs::net::{self, Answer, BoxFuture, Handler, Incoming, Link, LinkLimits, RefuseAll};
use proto::codec;
use proto::message::{HostReply, HostReport, HostRequest, Instance, ManagerReply, ManagerRequest, PROTOCOL, Role};
use proto::width;
use proto::{HostName, TreeId};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// For whatever is answered at all, however slow the machine is; what is promised to be prompt is measured where it is.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// A manager in this process, and a directory that lives as long as the test.
pub(crate) struct Fixture {
    pub(crate) directory: TempDir,
    pub(crate) address: String,
    pub(crate) admin: Link,
    running: Option<Running>,
}

/// A manager with a runtime of its own: dropping that is as good as killing its process.
struct Running {
    runtime: tokio::runtime::Runtime,
    /// Not held, so that a killed one lets go of its store.
    manager: Weak<Manager>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.runtime.shutdown_background();
        }
    }
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with_lifetime(HOST_CERTIFICATE_LIFETIME).await
    }

    pub(crate) async fn with_lifetime(lifetime: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (running, address, admin) = start(&directory.path().join("store"), lifetime, "127.0.0.1:0").await;
        Self { directory, address, admin, running: Some(running) }
    }

    /// What the command line asks; faults are errors.
    pub(crate) async fn ask(&self, request: impl Into<AdminRequest>) -> Result<AdminReply, String> {
        self.ask_with(request, |_| {}).await
    }

    pub(crate) async fn ask_with(
        &self,
        request: impl Into<AdminRequest>,
        mut on: impl FnMut(AdminEvent),
    ) -> Result<AdminReply, String> {
        let on = |incoming| {
            let Incoming::Event(body) = incoming else { panic!("bulk on the admin socket") };
            on(codec::decode::<_, { 16 << 20 }>(&body).unwrap());
        };
        match self.admin.request(&request.into(), on, SOON).await.map_err(|error| error.to_string())? {
            AdminReply::Fault(fault) => Err(fault.to_string()),
            reply => Ok(reply),
        }
    }

    /// Publishes a tree with one program of this content; returns its id.
    pub(crate) async fn publish(&self, generation: &str, content: &[u8]) -> TreeId {
        let (product, version) = generation.split_once('@').unwrap();
        let source = self.directory.path().join(format!("source-{generation}"));
        std::fs::create_dir_all(source.join("bin")).unwrap();
        std::fs::write(source.join("bin/agent"), content).unwrap();
        set_mode(&source.join("bin/agent"), 0o755);
        let order = PublishOrder {
            product: product.parse().unwrap(),
            version: version.parse().unwrap(),
            source: PublishOrder::source_bytes(&source),
            onto: None,
            entry_point: Some("bin/agent".into()),
            chunk_bytes: None,
            strict: false,
        };
        match self.ask(Long::Publish(order)).await.unwrap() {
            AdminReply::Published(report) => report.records[0].tree,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn export(&self, generation: &str, to: &[&str]) {
        let to = to.iter().map(|target| target.parse().unwrap()).collect();
        self.ask(Quick::Export(generation.parse().unwrap(), to)).await.unwrap();
    }

    pub(crate) async fn token(&self, host: &str, ttl: Duration) -> proto::token::Token {
        let ttl_ms = width::millis(ttl);
        match self.ask(Quick::Token { host: host.parse().unwrap(), ttl_ms }).await.unwrap() {
            AdminReply::Token(text) => text.parse().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn enrolled(&self, host: &str) -> Identity {
        let token = self.token(host, SOON).await;
        enroll::enroll(&self.state(host), &self.address, &token, false).await.unwrap()
    }

    /// Syncs of the disk so far: for decisions, and for what hosts reported.
    pub(crate) fn synced(&self) -> (u64, u64) {
        self.running.as_ref().unwrap().manager.upgrade().unwrap().synced()
    }

    pub(crate) fn state(&self, host: &str) -> std::path::PathBuf {
        self.directory.path().join(format!("state-{host}"))
    }

    /// Enrols a host and connects it.
    pub(crate) async fn host(&self, name: &str) -> FakeHost {
        let identity = self.enrolled(name).await;
        FakeHost::connect(&self.address, identity).await.unwrap()
    }

    /// Kills this manager, and waits until it has let go of its store.
    pub(crate) async fn stop(&mut self) {
        self.running.take().unwrap().runtime.shutdown_background();
        let store = self.directory.path().join("store");
        for _ in 0..2000 {
            let free = tokio::task::spawn_blocking({
                let store = store.clone();
                move || {
                    let opened = manager_fs::manager::control::open(&store);
                    manager_fs::manager::store::Store::open(&store).is_ok() && opened.is_ok()
                }
            });
            if free.await.unwrap() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("something holds the killed manager");
    }

    /// Starts a manager on the store of one that was stopped.
    pub(crate) async fn try_start(&mut self) -> Result<(), String> {
        let store = self.directory.path().join("store");
        let started = try_start(&store, HOST_CERTIFICATE_LIFETIME, &self.address).await?;
        let (running, address, admin) = started;
        (self.running, self.address, self.admin) = (Some(running), address, admin);
        Ok(())
    }

    /// As [`Fixture::try_start`], and it must succeed.
    pub(crate) async fn start_again(&mut self) {
        self.try_start().await.unwrap();
    }

    /// Kills this manager and starts another on the same store and address.
    pub(crate) async fn restart(&mut self) {
        self.running.take().unwrap().runtime.shutdown_background();
        let store = self.directory.path().join("store");
        let (running, address, admin) = start(&store, HOST_CERTIFICATE_LIFETIME, &self.address).await;
        (self.running, self.address, self.admin) = (Some(running), address, admin);
    }
}

async fn start(store: &Path, host_certificate_lifetime: Duration, listen: &str) -> (Running, String, Link) {
    try_start(store, host_certificate_lifetime, listen).await.unwrap()
}

async fn try_start(
    store: &Path,
    host_certificate_lifetime: Duration,
    listen: &str,
) -> Result<(Running, String, Link), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (store, listen) = (store.to_path_buf(), listen.to_owned());
    let socket = store.join("manager.sock");
    let started = runtime.spawn(async move {
        let options = ManagerOptions { store: store.clone(), host_certificate_lifetime };
        // A killed process would be gone at once; a killed runtime drops its tasks one after the other.
        let manager = tokio::time::timeout(SOON, async {
            loop {
                match Manager::open(&options).await {
                    Err(error) if ["in use", "has it open"].iter().any(|why| error.to_string().contains(why)) => {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    opened => return opened.map_err(|error| error.to_string()),
                }
            }
        });
        let manager = manager.await.expect("something holds the killed manager")?;
        let address = manager.listen(&listen).await.unwrap().to_string();
        let listener = net::bind_unix(&store.join("manager.sock")).unwrap();
        tokio::spawn(serve_admin(Arc::clone(&manager), listener));
        Ok::<_, String>((address, Arc::downgrade(&manager)))
    });
    let (address, manager) = match started.await.unwrap() {
        Ok(started) => started,
        Err(error) => {
            runtime.shutdown_background();
            return Err(error);
        }
    };
    let admin = net::start(net::connect_unix(&socket).await.unwrap(), Arc::new(RefuseAll));
    let greeting = manager_fs::version::greeting();
    assert_eq!(admin.request(&greeting, |_| {}, SOON).await, Ok(greeting.clone()));
    Ok((Running { runtime, manager }, address, admin))
}

/// A host whose agents the test plays.
pub(crate) struct FakeHost {
    pub(crate) name: HostName,
    pub(crate) identity: Identity,
    pub(crate) link: Link,
    /// What the manager asks, except `ExportsChanged`.
    pub(crate) asked: mpsc::UnboundedReceiver<(ManagerRequest, Answer)>,
    /// `ExportsChanged`.
    pub(crate) exports_changed: mpsc::UnboundedReceiver<()>,
}

impl FakeHost {
    pub(crate) async fn connect(address: &str, identity: Identity) -> Result<Self, String> {
        Self::connect_as(address, identity, Instance([0; 16])).await
    }

    /// As one of several daemons with an identity.
    pub(crate) async fn connect_as(address: &str, identity: Identity, instance: Instance) -> Result<Self, String> {
        let (link, asked, exports_changed) = dial(address, &identity).await?;
        let hello = hello(PROTOCOL, Role::Control, instance);
        let name = match link.request(&hello, |_| {}, SOON).await.map_err(|error| error.to_string())? {
            ManagerReply::Welcome { host, .. } => host,
            other => return Err(format!("{other:?}")),
        };
        Ok(Self { name, identity, link, asked, exports_changed })
    }

    pub(crate) async fn request(&self, request: HostRequest) -> ManagerReply {
        self.link.request(&request, |_| {}, SOON).await.unwrap()
    }

    pub(crate) async fn report(&self, report: HostReport) {
        assert_eq!(self.request(HostRequest::Report { reports: vec![report] }).await, ManagerReply::Done);
    }

    /// The next thing that the manager wants.
    pub(crate) async fn next(&mut self) -> (ManagerRequest, Answer) {
        let next = tokio::time::timeout(SOON, self.asked.recv()).await;
        next.expect("the manager asked for nothing in time").unwrap()
    }

    /// The next thing that the manager wants must be `Run`.
    pub(crate) async fn next_run(&mut self) -> (proto::agent::JobId, proto::agent::Operation, Answer) {
        match self.next().await {
            (ManagerRequest::Run { job, operation, .. }, answer) => (job, operation, answer),
            (other, _) => panic!("{other:?}"),
        }
    }

    pub(crate) async fn exports(&self) -> Vec<String> {
        match self.request(HostRequest::Exports).await {
            ManagerReply::Exports(records) => {
                let names = records.iter().map(|bytes| {
                    let signed = proto::SignedRecord::from_bytes(bytes).unwrap();
                    signed.verify(self.identity.publishers.as_ref().unwrap()).unwrap().name()
                });
                names.collect()
            }
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn hello(protocol: u16, role: Role, instance: Instance) -> HostRequest {
    HostRequest::Hello { protocol, software: "test".into(), role, instance }
}

type Asked = mpsc::UnboundedReceiver<(ManagerRequest, Answer)>;

pub(crate) async fn dial(
    address: &str,
    identity: &Identity,
) -> Result<(Link, Asked, mpsc::UnboundedReceiver<()>), String> {
    struct Relay(mpsc::UnboundedSender<(ManagerRequest, Answer)>, mpsc::UnboundedSender<()>);
    impl Handler for Relay {
        fn handle(&self, body: Vec<u8>, answer: Answer) -> BoxFuture<()> {
            let request = codec::decode::<ManagerRequest, { 16 << 20 }>(&body).unwrap();
            if matches!(request, ManagerRequest::ExportsChanged | ManagerRequest::Alive) {
                if request == ManagerRequest::ExportsChanged {
                    let _ = self.1.send(());
                }
                return Box::pin(async move { answer.finish(&HostReply::Done).await.unwrap_or(()) });
            }
            let _ = self.0.send((request, answer));
            Box::pin(std::future::ready(()))
        }
    }
    let config = net::client_config(&identity.tls).map_err(|error| error.to_string())?;
    let stream = net::connect(address, config).await.map_err(|error| error.to_string())?;
    let (send, asked) = mpsc::unbounded_channel();
    let (changed, exports_changed) = mpsc::unbounded_channel();
    let link = net::start_with(stream, LinkLimits::default(), |_| Arc::new(Relay(send, changed)));
    Ok((link, asked, exports_changed))
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
