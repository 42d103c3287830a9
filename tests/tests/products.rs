//! Real programs as agents, changed in their version under load: `tests/products/run` fetches them and runs this.

// Panicking is how a test reports, also in the functions that tests share.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tests::Site;
use tests::command::until;
use tests::load::{Seen, get, under_load};
use tests::site::free_address;

const CLIENTS: usize = 8;

/// The two versions of a product that were fetched, the older one first.
fn versions(product: &str) -> [PathBuf; 2] {
    let dir = std::env::var_os("MANAGER_FS_PRODUCTS").expect("MANAGER_FS_PRODUCTS: call tests/products/run");
    let mut found: Vec<PathBuf> =
        fs::read_dir(Path::new(&dir).join(product)).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found.try_into().expect("two versions")
}

/// A product on a host of its own.
struct Lab {
    site: Site,
    names: Vec<String>,
}

impl Lab {
    fn new(product: &'static str) -> Self {
        Self { site: Site::new(product), names: Vec::new() }
    }

    /// Publishes a copy of a tree with these files in addition.
    fn publish(&mut self, version: &str, tree: &Path, files: &[(&str, String)]) {
        let copy = self.site.manager.path(&format!("tree-{version}"));
        assert!(Command::new("cp").arg("-a").args([tree, &copy]).status().unwrap().success());
        for (path, text) in files {
            let path = copy.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text.replace("ADDRESS", &self.site.address.to_string())).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        self.site.publish(version, &copy);
        self.names.push(version.to_owned());
    }

    #[track_caller]
    fn launch(&mut self, ask: impl Fn() -> io::Result<String>) {
        self.site.start();
        until(&format!("{} serves", self.site.product), || ask().ok());
        self.site.serves(&self.names[0]);
    }

    /// Changes over under load and prints what the clients saw.
    #[track_caller]
    fn change(&self, to: &str, code: i32, ask: &(impl Fn() -> io::Result<String> + Sync)) -> Seen {
        let (seen, ()) = under_load(CLIENTS, ask, || {
            self.site.upgrade(to).expect(code);
            // While the version before drains.
            std::thread::sleep(Duration::from_secs(2));
        });
        println!("{} to {to}: {seen}", self.site.product);
        seen
    }

    /// Up, down, and to one that fails; nobody may be lost.
    #[track_caller]
    fn changes(&self, ask: impl Fn() -> io::Result<String> + Sync) {
        for (to, code) in [("2", 0), ("1", 0), ("bad", 1), ("2", 0), ("1", 0)] {
            let seen = self.change(to, code, &ask);
            assert_eq!(seen.lost(), 0, "{to}: {seen:?}");
            assert!(code != 0 || seen.of(&format!("200 version {to}")) > 0, "{to}: {seen:?}");
        }
    }
}

#[test]
fn nginx() {
    let mut lab = Lab::new("nginx");
    let health = free_address();
    let file = format!(
        "entrypoint = 'usr/sbin/nginx'\nprobation = '6s'\n\
         arguments = ['-p', '${{state}}', '-c', '${{tree}}/etc/web.conf']\n\
         [health]\nhttp = 'http://{health}/'\ninterval = '250ms'\n\
         [adapter]\nhandover = 'sockets'\nlisten = [{{ name = 'http', tcp = 'ADDRESS' }}]\n\
         drain = {{ signal = 'SIGQUIT', deadline = '20s' }}\nenvironment = {{ NGINX = '3;' }}\n"
    );
    let conf = |text: &str| {
        format!(
            "daemon off; worker_processes 2; error_log stderr warn; pid nginx.pid;\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n access_log off;\n\
             client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;\n\
             uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n\
             server {{ listen ADDRESS; location / {{ return 200 \"version {text}\\n\"; }} }}\n\
             server {{ listen {health} reuseport; location / {{ return 200 well; }} }}\n}}\n"
        )
    };
    let [old, new] = versions("nginx");
    let files = |conf: String| [("manager-fs.toml", file.clone()), ("etc/web.conf", conf)];
    lab.publish("1", &old, &files(conf("1")));
    let address = lab.site.address;
    lab.launch(|| get(address, "/"));
    lab.publish("2", &new, &files(conf("2")));
    lab.publish("bad", &new, &files(conf("bad") + "no_such_directive;\n"));
    lab.changes(|| get(address, "/"));
}

#[test]
fn node() {
    let mut lab = Lab::new("node");
    let file = "entrypoint = 'bin/node'\narguments = ['${tree}/app/server.js']\nprobation = '10s'\n\
                [health]\nhttp = 'http://ADDRESS/'\ninterval = '250ms'\n\
                [adapter]\nhandover = 'sockets'\nlisten = [{ name = 'http', tcp = 'ADDRESS' }]\n";
    let server = |text: &str| {
        format!(
            "const server = require('node:http').createServer((_, answer) => answer.end('version {text}\\n'));\n\
             server.listen({{ fd: 3 }});\n\
             process.on('SIGTERM', () => server.close());\n"
        )
    };
    let [old, new] = versions("node");
    let files = |server: String| [("manager-fs.toml", file.to_owned()), ("app/server.js", server)];
    lab.publish("1", &old, &files(server("1")));
    let address = lab.site.address;
    lab.launch(|| get(address, "/"));
    lab.publish("2", &new, &files(server("2")));
    lab.publish("bad", &new, &files("throw new Error('no configuration');\n".to_owned()));
    lab.changes(|| get(address, "/"));
}

#[test]
fn python() {
    let mut lab = Lab::new("python");
    let file = "entrypoint = 'usr/bin/python3.11'\narguments = ['${tree}/app/server.py']\nprobation = '10s'\n\
                [health]\nhttp = 'http://ADDRESS/'\ninterval = '250ms'\n\
                [adapter]\nhandover = 'sockets'\nlisten = [{ name = 'http', tcp = 'ADDRESS' }]\n\
                environment = { PYTHONHOME = '${tree}/usr', PYTHONDONTWRITEBYTECODE = '1' }\n";
    // The static server of the standard library, on a socket that it is given.
    let server = "import functools, http.server, os, signal, socket, threading\n\
        class Server(http.server.ThreadingHTTPServer):\n    daemon_threads = False\n\
        class Files(http.server.SimpleHTTPRequestHandler):\n    def log_message(self, *_): pass\n\
        files = functools.partial(Files, directory=os.environ['MANAGER_FS_TREE'] + '/site')\n\
        server = Server(('', 0), files, bind_and_activate=False)\n\
        server.socket = socket.socket(fileno=3)\n\
        stop = lambda *_: threading.Thread(target=server.shutdown).start()\n\
        signal.signal(signal.SIGTERM, stop)\n\
        server.serve_forever(poll_interval=0.05)\n\
        server.server_close()\n";
    let [old, new] = versions("python");
    let files = |server: &str, text: &str| {
        [
            ("manager-fs.toml", file.to_owned()),
            ("app/server.py", server.to_owned()),
            ("site/index.html", format!("version {text}\n")),
        ]
    };
    lab.publish("1", &old, &files(server, "1"));
    let address = lab.site.address;
    lab.launch(|| get(address, "/"));
    lab.publish("2", &new, &files(server, "2"));
    lab.publish("bad", &new, &files("raise SystemExit('no configuration')\n", "bad"));
    lab.changes(|| get(address, "/"));
}

/// Asks whether a connection would be encrypted, which a server answers before anybody has said who they are.
fn ask_postgresql(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47])?;
    let mut answer = [0];
    match stream.read(&mut answer)? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "empty")),
        _ => Ok(char::from(answer[0]).to_string()),
    }
}

#[test]
fn postgresql() {
    let mut lab = Lab::new("postgresql");
    let data = tempfile::Builder::new().prefix("postgresql").tempdir().unwrap();
    fs::set_permissions(data.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let (data, port) = (data.path().display(), lab.site.address.port());
    let file = "entrypoint = 'bin/start'\nprobation = '30s'\n\
                [health]\nsocket = 'ADDRESS'\ninterval = '100ms'\n\
                [adapter]\nhandover = 'restart'\ndrain = { signal = 'SIGINT', deadline = '20s' }\n";
    // PostgreSQL does not run as root.
    let start = |more: &str| {
        format!(
            "#!/bin/sh\nset -e\nbin=$MANAGER_FS_TREE/usr/lib/postgresql/15/bin\ncd {data}\n\
             if [ \"$(id -u)\" = 0 ]; then as='setpriv --reuid=65534 --regid=65534 --clear-groups'; fi\n\
             [ -d cluster ] || $as $bin/initdb -D cluster --no-sync --auth=trust >/dev/null\n\
             exec $as $bin/postgres -D cluster -k {data} -h 127.0.0.1 -p {port} {more}\n"
        )
    };
    let [old, new] = versions("postgresql");
    let files = |start: String| [("manager-fs.toml", file.to_owned()), ("bin/start", start)];
    lab.publish("1", &old, &files(start("")));
    let address = lab.site.address;
    let ask = || ask_postgresql(address);
    lab.launch(ask);
    lab.publish("2", &new, &files(start("")));
    lab.publish("bad", &new, &files(start("-c no_such_setting=1")));
    for (to, code) in [("2", 0), ("1", 0), ("bad", 1)] {
        let seen = lab.change(to, code, &ask);
        assert!(seen.of("") > 0, "it serves again");
    }
    let after = under_load(CLIENTS, ask, || std::thread::sleep(Duration::from_secs(1))).0;
    assert_eq!(after.lost(), 0, "{after}");
}
