use std::net::SocketAddr;
use std::time::{Duration, Instant};

use manager_fs::host::enroll::Identity;
use manager_fs::net::{self, Link, RefuseAll, tls};
use proto::message::{Instance, ManagerReply, PROTOCOL, Role};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::fixture::{Fixture, SOON, hello};

#[tokio::test]
async fn many_hosts_behind_one_address_come_at_once_and_all_get_through() {
    let fixture = Fixture::new().await;
    let mut hosts = Vec::new();
    for n in 0..200 {
        hosts.push(fixture.enrolled(&format!("web-{n}")).await);
    }
    // All of them are connected before the first one speaks.
    let mut connected = Vec::new();
    for identity in hosts {
        connected.push((TcpStream::connect(&fixture.address).await.unwrap(), identity));
    }
    let mut greetings = JoinSet::new();
    for (stream, identity) in connected.into_iter().rev() {
        greetings.spawn(async move { greet(stream, &identity).await });
    }
    let links = greetings.join_all().await;
    let refused: Vec<_> = links.iter().filter_map(|link| link.as_ref().err()).collect();
    assert!(refused.is_empty(), "{} refused, the first: {}", refused.len(), refused[0]);
}

#[tokio::test]
async fn a_flood_of_silent_connections_locks_no_other_address_out() {
    let fixture = Fixture::new().await;
    let identity = fixture.enrolled("web-1").await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(connect_from("127.0.0.2:0", &fixture.address).await);
    }
    greet(connect_from("127.0.0.3:0", &fixture.address).await, &identity).await.unwrap();
    // Nor other hosts of the same one, whether they say nothing or begin a handshake and never go on.
    let begun = Instant::now();
    greet(connect_from("127.0.0.2:0", &fixture.address).await, &identity).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    for _ in 0..100 {
        let mut slow = connect_from("127.0.0.2:0", &fixture.address).await;
        // The first bytes of a handshake record that promises more.
        slow.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
        silent.push(slow);
    }
    greet(connect_from("127.0.0.2:0", &fixture.address).await, &identity).await.unwrap();
}

/// Begins a handshake, never goes on, and comes back whenever it was thrown out.
async fn half_greets(local: &str, address: String) {
    loop {
        let mut stream = connect_from(local, &address).await;
        // The first bytes of a handshake record that promises more.
        drop(stream.write_all(&[22, 3, 1, 2, 0, 1]).await);
        drop(stream.read(&mut [0]).await);
    }
}

#[tokio::test]
async fn hosts_get_in_soon_beside_nine_hundred_half_greetings_of_their_address() {
    let fixture = Fixture::new().await;
    let identity = fixture.enrolled("web-1").await;
    let mut flood = JoinSet::new();
    for _ in 0..900 {
        flood.spawn(half_greets("127.0.0.2:0", fixture.address.clone()));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut took = Vec::new();
    for _ in 0..7 {
        let begun = Instant::now();
        while greet(connect_from("127.0.0.2:0", &fixture.address).await, &identity).await.is_err() {}
        took.push(begun.elapsed());
    }
    took.sort();
    println!("beside 900 half greetings: {took:?}");
    assert!(took[3] < Duration::from_secs(5), "promised are two seconds, on a machine that is not busy: {took:?}");
}

async fn connect_from(local: &str, address: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(local.parse().unwrap()).unwrap();
    socket.connect(address.parse::<SocketAddr>().unwrap()).await.unwrap()
}

/// Shakes hands and says `Hello`.
async fn greet(stream: TcpStream, identity: &Identity) -> Result<Link, String> {
    let config = net::client_config(&identity.tls).map_err(|error| error.to_string())?;
    let name = ServerName::try_from(tls::MANAGER_NAME).unwrap();
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| error.to_string())?;
    let link = net::start(stream, Arc::new(RefuseAll));
    let hello = hello(PROTOCOL, Role::Control, Instance([0; 16]));
    match link.request(&hello, |_| {}, SOON).await.map_err(|error| error.to_string())? {
        ManagerReply::Welcome { .. } => Ok(link),
        other => Err(format!("{other:?}")),
    }
}
