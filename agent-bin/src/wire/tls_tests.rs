//! Hosts of one authority, for tests of both sides, and what a handshake refuses.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};

use super::*;

/// Longer than anything takes here; whoever waits for its end waits for a fault.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// Short enough to wait for.
pub(crate) const SHORT: Duration = Duration::from_millis(400);
/// Of a side whose deadlines are not what a test is about.
pub(crate) const PATIENT: Patience = Patience { handshake: LONG, head: LONG, body: LONG };

/// What signs hosts' certificates.
pub(crate) struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Gives `state` the identity of a host.
    pub(crate) fn enroll(&self, state: &Path, host: &str) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, host);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        let directory = identity::directory(state);
        fs::create_dir_all(&directory).unwrap();
        let files = [("ca.pem", self.pem.as_str()), ("host.pem", &certificate), ("host.key", &key.serialize_pem())];
        identity::write(&directory, &files).unwrap();
    }
}

/// As [`dial`], of somebody who has no certificate to show.
pub(crate) fn dial_unknown(state: &Path, host: &str, address: &str) -> io::Result<Dialled> {
    let own = Identity::read(state).unwrap();
    let verifier = Arc::new(IsHost { host: host.parse().unwrap(), of_authority: own.verifier });
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let session = ClientConnection::new(Arc::new(config), ServerName::try_from(AGENT_NAME).unwrap()).unwrap();
    let mut stream = StreamOwned::new(session, Timed::dial(address, PATIENT)?);
    stream.sock.within(LONG);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// Who is seen to dial, and who is seen to answer, if `listens` and `dials` are the states of two hosts.
fn met(listens: &Path, dials: &Path, wanted: &str) -> (Option<HostName>, io::Result<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        let accepted = scope.spawn(move || {
            let stream = Timed::of(listener.accept().unwrap().0, PATIENT).unwrap();
            accept(listens, address.port(), stream).ok().and_then(|(_, host)| host)
        });
        let dialled = dial(dials, &wanted.parse().unwrap(), &address.to_string(), PATIENT);
        let dialled = dialled.map(drop);
        (accepted.join().unwrap(), dialled)
    })
}

#[test]
fn each_side_believes_its_own_authority_and_nobody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let [media, web, foreign] = ["media", "web", "foreign"].map(|name| dir.path().join(name));
    let authority = Authority::new();
    authority.enroll(&media, "media-1");
    authority.enroll(&web, "web-1");
    Authority::new().enroll(&foreign, "web-1");
    let (seen, dialled) = met(&media, &web, "media-1");
    assert_eq!(seen, Some("web-1".parse().unwrap()));
    dialled.unwrap();
    // It answers, and is one of ours, but not the one that is wanted.
    let (_, dialled) = met(&media, &web, "media-2");
    assert!(dialled.unwrap_err().to_string().contains("NotValidForName"));
    for (listens, dials) in [(&media, &foreign), (&foreign, &web)] {
        let (seen, dialled) = met(listens, dials, "media-1");
        assert_eq!(seen, None);
        assert!(dialled.is_err(), "{} is believed", listens.display());
    }
}

#[test]
fn a_certificate_with_two_names_or_none_is_no_hosts() {
    let named = |names: &[&str]| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for name in names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        name_in(params.self_signed(&key).unwrap().der())
    };
    assert_eq!(named(&["web-1"]), Some("web-1".parse().unwrap()));
    for names in [&[][..], &["../web"], &["web 1"], &[""]] {
        assert_eq!(named(names), None, "{names:?}");
    }
    assert_eq!(name_in(b"\x30\x03abc"), None);
}
