//! What an operator's commands dial a manager's HTTP interface with.

use std::io;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;

use super::NetError;
use super::tls::{MANAGER_NAME, client_builder, dial, explain, provider, refused};

/// A client's certificate chain and its key, PEM.
#[derive(Clone)]
pub struct WebIdentity {
    /// The certificate first, then what signed it.
    pub chain: String,
    /// The key, PEM.
    pub key: String,
}

/// What an operator's commands dial a manager's HTTP interface with: the authorities that are believed (PEM, one or more),
/// and the certificate that is shown, if any.
///
/// # Errors
/// There is no authority in the text, or the certificate and its key cannot be used together.
pub fn web_client_config(authorities: &str, shown: Option<&WebIdentity>) -> Result<Arc<ClientConfig>, NetError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(authorities, "authority's")? {
        roots
            .add(authority)
            .map_err(|error| NetError::Identity(format!("an authority's certificate is unusable: {error}")))?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| NetError::Identity(format!("the authorities' certificates are unusable: {error}")))?;
    let builder = client_builder(Arc::new(ByEitherName { inner: verifier }))?;
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some(WebIdentity { chain, key }) => {
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
                .map_err(|error| NetError::Identity(format!("the private key is not PEM: {error}")))?;
            builder
                .with_client_auth_cert(certificates(chain, "own")?, key)
                .map_err(|error| NetError::Identity(format!("the certificate and its key do not fit: {error}")))?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

fn certificates(pem: &str, whose: &str) -> Result<Vec<CertificateDer<'static>>, NetError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(NetError::Identity(format!("there is no {whose} certificate in it"))),
        Err(error) => Err(NetError::Identity(format!("the {whose} certificate is not PEM: {error}"))),
    }
}

/// Believes a server whose certificate is for the name that it was dialled by, or is a manager's own: that one bears
/// [`MANAGER_NAME`] wherever it is reached.
#[derive(Debug)]
struct ByEitherName {
    inner: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for ByEitherName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let of = |name: &ServerName<'_>| {
            self.inner.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
        };
        match of(server_name) {
            Err(rustls::Error::InvalidCertificate(
                fault @ (CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }),
            )) => {
                let own = ServerName::try_from(MANAGER_NAME).map_err(|_| CertificateError::NotValidForName)?;
                of(&own).map_err(|_| fault.into())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(refused("TLS 1.2 is not spoken"))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Dials a manager's HTTP interface at `address` (`HOST:PORT`), which is asked for as `name`, and shakes hands.
///
/// # Errors
/// Nobody listens there, or what answers shows no certificate of the authorities that are believed, for that name.
pub async fn connect_web(
    address: &str,
    name: &str,
    config: Arc<ClientConfig>,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, NetError> {
    dial(address, name, config, explain_web).await
}

/// As [`explain`], to an operator who named the authorities that are believed.
fn explain_web(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            String::from(
                "its certificate was signed by none of those in --manager-ca: name the one that did (of a manager's own, \
             STORE/keys/ca.pem)",
            )
        }
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => String::from("its certificate is for another name than the one in --manager"),
        _ => explain(error),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

    use super::*;
    use crate::net::{accept, web_config};

    /// An authority, PEM, and a certificate for a name that it signed, with its key.
    fn signed(name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String, String) {
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = authority.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(authority, key);
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let own = KeyPair::generate().unwrap();
        (pem, params.signed_by(&own, &issuer).unwrap().pem(), own.serialize_pem())
    }

    /// What comes of dialling somebody with this certificate by a name.
    async fn dialled(name: &str, authority: &str, certificate: &str, key: &str) -> Result<(), String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let config = web_config(certificate, key).unwrap();
        let served = async {
            let (stream, _) = listener.accept().await.unwrap();
            drop(accept(stream, config).await);
        };
        let client = web_client_config(authority, None).unwrap();
        let (dialled, ()) = tokio::join!(connect_web(&address, name, client), served);
        dialled.map(drop).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_managers_own_certificate_is_believed_by_any_name_and_another_by_its_own() {
        let server = ExtendedKeyUsagePurpose::ServerAuth;
        let (authority, certificate, key) = signed(MANAGER_NAME, server.clone());
        for name in ["192.0.2.7", "manager.example", MANAGER_NAME] {
            assert_eq!(dialled(name, &authority, &certificate, &key).await, Ok(()), "{name}");
        }
        let (authority, certificate, key) = signed("site.example", server);
        assert_eq!(dialled("site.example", &authority, &certificate, &key).await, Ok(()));
        let other = dialled("other.example", &authority, &certificate, &key).await.unwrap_err();
        assert!(other.contains("for another name than the one in --manager"), "{other}");
    }

    #[tokio::test]
    async fn neither_another_authority_nor_a_hosts_certificate_is_believed() {
        let (_, certificate, key) = signed(MANAGER_NAME, ExtendedKeyUsagePurpose::ServerAuth);
        let (stranger, ..) = signed("x", ExtendedKeyUsagePurpose::ServerAuth);
        let refused = dialled(MANAGER_NAME, &stranger, &certificate, &key).await.unwrap_err();
        assert!(refused.contains("signed by none of those in --manager-ca"), "{refused}");
        // A host could be called as the machine of its manager.
        let (authority, certificate, key) = signed("manager.example", ExtendedKeyUsagePurpose::ClientAuth);
        assert!(dialled("manager.example", &authority, &certificate, &key).await.is_err());
    }

    #[test]
    fn a_file_without_certificates_is_no_authority() {
        for wrong in ["", "text", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
            assert!(web_client_config(wrong, None).is_err(), "{wrong:?}");
        }
        let (authority, certificate, _) = signed("x", ExtendedKeyUsagePurpose::ClientAuth);
        let (.., other_key) = signed("x", ExtendedKeyUsagePurpose::ClientAuth);
        let misfit = WebIdentity { chain: certificate, key: other_key };
        assert!(web_client_config(&authority, Some(&misfit)).is_err());
    }
}
