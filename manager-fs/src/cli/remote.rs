//! `--manager https://…`: commands ask a manager on another machine, through its HTTP interface, as whoever has a token or
//! a certificate there. Once it is known who asks, the connection goes on as the one to a manager of this machine.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use hyper::Uri;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Command, archive};
use crate::manager::admin::{AdminEvent, AdminReply, AdminRequest, Long, PublishOrder, Quick};
use crate::net::{self, LINK_PATH, LINK_PROTOCOL, Link, RefuseAll, WebIdentity};

const HEADING: &str = "Global options";
/// The token itself; arguments can be read by every user of a machine.
const TOKEN_VARIABLE: &str = "MANAGER_FS_MANAGER_TOKEN";
/// Bytes of a token, or of certificates.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Bytes of the answer that begins a connection, and of one that refuses it.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Bytes of an archive that are sent at once.
const PIECE_BYTES: usize = 1 << 20;
/// How long a manager may take to write them down.
const PIECE_WITHIN: Duration = Duration::from_secs(120);

/// Where the manager is, if not here, and who asks it.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Remote {
    /// Ask the manager at this address, https://HOST:PORT (docs/api.md), instead of the one on this machine
    #[arg(long, global = true, env = "MANAGER_FS_MANAGER_URL", value_name = "URL", help_heading = HEADING)]
    manager: Option<String>,
    /// Who signed the certificate that is shown there: certificates, PEM (of a manager's own: its STORE/keys/ca.pem)
    #[arg(long, global = true, env = "MANAGER_FS_MANAGER_CA", value_name = "FILE", help_heading = HEADING)]
    manager_ca: Option<PathBuf>,
    /// File with a token that `api-token add` printed there; the variable MANAGER_FS_MANAGER_TOKEN may hold it itself
    #[arg(long, global = true, env = "MANAGER_FS_MANAGER_TOKEN_FILE", value_name = "FILE", help_heading = HEADING)]
    manager_token_file: Option<PathBuf>,
    /// A certificate that was let in there, in the place of a token, PEM
    #[arg(long, global = true, env = "MANAGER_FS_MANAGER_CERTIFICATE", value_name = "FILE", help_heading = HEADING)]
    manager_certificate: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, global = true, env = "MANAGER_FS_MANAGER_KEY", value_name = "FILE", help_heading = HEADING)]
    manager_key: Option<PathBuf>,
}

/// What is sent to show who asks.
enum Shown {
    Token(String),
    Certificate(WebIdentity),
}

impl Remote {
    /// Whether it is another machine's manager that is asked.
    pub(super) fn is_meant(&self) -> bool {
        self.manager.is_some()
    }

    /// Refuses commands that are about the manager's machine itself.
    pub(super) fn allows(&self, command: &Command) -> anyhow::Result<()> {
        let name = match command {
            Command::Serve(_) => "serve",
            Command::Recover(_) => "recover",
            Command::Store(_) => "store",
            _ => return Ok(()),
        };
        if self.is_meant() {
            bail!("`{name}` works on the store itself: run it on the manager's machine, without --manager");
        }
        Ok(())
    }

    /// A connection to it, as whoever has the token or the certificate.
    pub(super) async fn connect(&self, at_most: Duration) -> anyhow::Result<Link> {
        let typed = self.manager.as_deref().unwrap_or_default();
        let (host, port) = address_of(typed)?;
        let Some(ca) = &self.manager_ca else {
            bail!(
                "--manager-ca: name the certificates of who signed the manager's (of its own: its STORE/keys/ca.pem; of \
                 a public authority: /etc/ssl/certs/ca-certificates.crt)"
            );
        };
        let shown = self.shown()?;
        let identity = if let Shown::Certificate(identity) = &shown { Some(identity) } else { None };
        let config = net::web_client_config(&text_of(ca)?, identity).with_context(|| ca.display().to_string())?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let stream = net::connect_web(&format!("{host}:{port}"), bare, config).await?;
        let begun = timeout(at_most, begin(stream, &format!("{host}:{port}"), &shown)).await;
        begun.map_err(|_| anyhow!("{typed} has not answered within {}", super::units::duration(at_most)))?
    }

    fn shown(&self) -> anyhow::Result<Shown> {
        match (&self.manager_certificate, &self.manager_key) {
            (Some(chain), Some(key)) => {
                return Ok(Shown::Certificate(WebIdentity { chain: text_of(chain)?, key: text_of(key)? }));
            }
            (None, None) => {}
            _ => bail!("--manager-certificate and --manager-key belong together"),
        }
        let token = match &self.manager_token_file {
            Some(file) => text_of(file)?,
            None => std::env::var(TOKEN_VARIABLE).map_err(|_| {
                anyhow!(
                    "nothing says who asks: give --manager-token-file FILE or the variable {TOKEN_VARIABLE} (`manager-fs \
                     api-token add` prints tokens), or --manager-certificate and --manager-key"
                )
            })?,
        };
        let token = token.trim().to_owned();
        // It becomes a line of a request.
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            bail!("that is no token as `manager-fs api-token add` prints it");
        }
        Ok(Shown::Token(token))
    }
}

/// Host, in brackets where it is an address of IPv6, and port.
fn address_of(typed: &str) -> anyhow::Result<(String, u16)> {
    let wrong = || anyhow!("--manager '{typed}': want https://HOST:PORT");
    let uri: Uri = typed.parse().map_err(|_| wrong())?;
    let (host, port) = (uri.host().ok_or_else(wrong)?, uri.port_u16());
    // What else stands there, such as a port that is none, is not passed over.
    let whole = port.map_or_else(|| format!("https://{host}"), |port| format!("https://{host}:{port}"));
    let is_whole = typed.strip_suffix('/').unwrap_or(typed) == whole;
    if is_whole { Ok((host.to_owned(), port.unwrap_or(443))) } else { Err(wrong()) }
}

fn text_of(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = std::fs::File::open(file).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
    read.with_context(|| format!("cannot read {}", file.display()))?;
    Ok(text)
}

/// Asks by HTTP to go on otherwise.
async fn begin<S>(mut stream: S, host: &str, shown: &Shown) -> anyhow::Result<Link>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let bearer = match shown {
        Shown::Token(token) => format!("Authorization: Bearer {token}\r\n"),
        Shown::Certificate(_) => String::new(),
    };
    let request = format!(
        "GET {LINK_PATH} HTTP/1.1\r\nHost: {host}\r\n{bearer}Connection: Upgrade\r\nUpgrade: {LINK_PROTOCOL}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut head = Vec::new();
    // What follows the head is already the other protocol's.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == ANSWER_BYTES_MAX {
            bail!("what answers there is no manager: its answer does not end");
        }
        head.push(stream.read_u8().await.context("the connection ended before its answer")?);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status == "101" {
        return Ok(net::start(stream, Arc::new(RefuseAll)));
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; usize::min(length.unwrap_or(0), ANSWER_BYTES_MAX)];
    stream.read_exact(&mut body).await.context("the connection ended within its answer")?;
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    match problem["detail"].as_str() {
        Some(detail) => bail!("{detail}"),
        None => bail!("what answers there is no manager with an interface for commands (status {status})"),
    }
}

/// What is asked of a manager on another machine in the place of this, and the files that are sent to it first.
pub(super) fn divided(request: AdminRequest) -> anyhow::Result<(AdminRequest, Option<PathBuf>)> {
    let mut files = None;
    let request = match request {
        AdminRequest::Long(Long::Publish(order)) => {
            let source = order.source_path();
            if !source.is_absolute() {
                bail!(
                    "an image's layout is published on the manager's machine, or as an archive: name its file itself \
                     ({})",
                    source.display()
                );
            }
            files = Some(source);
            Long::Publish(PublishOrder { source: Vec::new(), ..order }).into()
        }
        other => other,
    };
    crate::manager::admin::only_there(&request)?;
    Ok((request, files))
}

/// Sends files, a directory as an archive, for the `Publish` that follows on this connection.
pub(super) async fn send(link: &Link, source: &Path, mut on: impl FnMut(AdminEvent)) -> anyhow::Result<()> {
    let total = std::fs::metadata(source).with_context(|| source.display().to_string())?;
    let total = if total.is_dir() { 0 } else { total.len() };
    let (pieces, mut read) = mpsc::channel(2);
    let from = source.to_path_buf();
    let reader = std::thread::spawn(move || read_all(&from, Pieces { pieces, waiting: Vec::new() }));
    let mut done = 0;
    while let Some(piece) = read.recv().await {
        done += piece.len() as u64;
        match link.request(&AdminRequest::from(Quick::Piece(piece)), |_| {}, PIECE_WITHIN).await? {
            AdminReply::Done => on(AdminEvent::Progress { task: "sending".to_owned(), done, total, bytes: true }),
            AdminReply::Fault(fault) => bail!(fault),
            _ => bail!("the manager answered something else than was asked: please report it"),
        }
    }
    let read = reader.join().map_err(|_| anyhow!("reading {} failed", source.display()))?;
    read.with_context(|| format!("cannot read {}", source.display()))
}

fn read_all(source: &Path, mut to: Pieces) -> std::io::Result<()> {
    if source.is_dir() {
        to = archive::write(source, to)?;
    } else {
        std::io::copy(&mut std::fs::File::open(source)?, &mut to)?;
    }
    to.last()
}

/// Bytes on their way to the manager.
struct Pieces {
    pieces: mpsc::Sender<Vec<u8>>,
    waiting: Vec<u8>,
}

impl Pieces {
    fn last(mut self) -> std::io::Result<()> {
        let rest = std::mem::take(&mut self.waiting);
        if rest.is_empty() { Ok(()) } else { self.give(rest) }
    }

    fn give(&self, piece: Vec<u8>) -> std::io::Result<()> {
        self.pieces.blocking_send(piece).map_err(|_| ErrorKind::BrokenPipe.into())
    }
}

impl std::io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.waiting.extend_from_slice(bytes);
        while self.waiting.len() >= PIECE_BYTES {
            let rest = self.waiting.split_off(PIECE_BYTES);
            let piece = std::mem::replace(&mut self.waiting, rest);
            self.give(piece)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_https_and_has_no_path() {
        let of = |typed: &str| address_of(typed).ok();
        assert_eq!(of("https://m.example:7443"), Some(("m.example".to_owned(), 7443)));
        assert_eq!(of("https://[::1]:7443/"), Some(("[::1]".to_owned(), 7443)));
        assert_eq!(of("https://m"), Some(("m".to_owned(), 443)));
        for wrong in
            ["http://m:1", "m.example:7420", "https://", "https://m/v1", "https://m?x", "", "https://m:99999"]
        {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    async fn refused(answer: &'static [u8]) -> String {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let serve = async move {
            theirs.write_all(answer).await.unwrap();
            let mut asked = vec![0; 8192];
            let read = theirs.read(&mut asked).await.unwrap();
            String::from_utf8_lossy(&asked[..read]).into_owned()
        };
        let shown = Shown::Token("t".to_owned());
        let (begun, asked) = tokio::join!(begin(ours, "m:1", &shown), serve);
        assert!(asked.starts_with("GET /v1/link HTTP/1.1\r\nHost: m:1\r\nAuthorization: Bearer t\r\n"), "{asked}");
        begun.err().map(|error| format!("{error:#}")).unwrap_or_default()
    }

    #[tokio::test]
    async fn whoever_answers_is_a_manager_or_the_error_says_what_it_is() {
        let problem = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 21\r\n\r\n{\"detail\": \"a token\"}";
        assert_eq!(refused(problem).await, "a token");
        let page = refused(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
        assert!(page.contains("no manager") && page.contains("200"), "{page}");
        assert!(refused(b"SSH-2.0\r\n\r\n").await.contains("no manager"));
        let cut = refused(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nhi").await;
        assert!(cut.contains("within its answer"), "{cut}");
        assert_eq!(refused(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").await, "");
    }
}
