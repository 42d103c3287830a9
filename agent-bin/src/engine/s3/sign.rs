//! Requests to S3 are signed: AWS Signature Version 4, with the hash of the body in it, so that whoever answers knows who
//! asks and that nothing was changed on the way.

use sha2::{Digest, Sha256};

/// What signs, and for where.
#[derive(Clone)]
pub(super) struct Signer {
    pub(super) id: String,
    pub(super) secret: String,
    /// Of keys that end by themselves.
    pub(super) token: Option<String>,
    pub(super) region: String,
}

/// A request that is to be signed.
pub(super) struct Unsigned<'a> {
    pub(super) method: &'a str,
    pub(super) host: &'a str,
    /// As it is sent; nothing in it has to be escaped any more.
    pub(super) path: &'a str,
    /// Names and values, not escaped.
    pub(super) query: &'a [(&'a str, &'a str)],
    /// Further fields that are signed, with names in lower case.
    pub(super) fields: &'a [(&'a str, &'a str)],
    /// SHA-256 of the body, in hexadecimal.
    pub(super) body: &'a str,
    /// `20130524T000000Z`.
    pub(super) at: &'a str,
}

impl Signer {
    /// Target and fields, all but `Content-Length`.
    pub(super) fn sign(&self, request: &Unsigned<'_>) -> (String, Vec<(String, String)>) {
        let Unsigned { method, host, path, query, fields, body, at } = *request;
        let mut query: Vec<_> = query.iter().map(|(name, value)| (escaped(name), escaped(value))).collect();
        query.sort();
        let query: Vec<_> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let query = query.join("&");
        let mut signed: Vec<(String, String)> =
            fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let own = [("host", host), ("x-amz-content-sha256", body), ("x-amz-date", at)];
        signed.extend(own.map(|(name, value)| (name.to_owned(), value.to_owned())));
        signed.extend(self.token.iter().map(|token| ("x-amz-security-token".to_owned(), token.clone())));
        signed.sort();
        let names = signed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";");
        let lines: String = signed.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
        let canonical = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{body}");
        let day = at.get(..8).unwrap_or_default();
        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let text = format!("AWS4-HMAC-SHA256\n{at}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
        let mut key = mac(format!("AWS4{}", self.secret).as_bytes(), day.as_bytes());
        for part in [self.region.as_str(), "s3", "aws4_request"] {
            key = mac(&key, part.as_bytes());
        }
        let signature = hex(&mac(&key, text.as_bytes()));
        let credential = format!("{}/{scope}", self.id);
        let authorization =
            format!("AWS4-HMAC-SHA256 Credential={credential},SignedHeaders={names},Signature={signature}");
        signed.push(("authorization".to_owned(), authorization));
        let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        (target, signed)
    }
}

/// HMAC-SHA256 (RFC 2104).
fn mac(key: &[u8], text: &[u8]) -> [u8; 32] {
    let mut block = [0u8; 64];
    if key.len() > block.len() {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::new().chain_update(block.map(|byte| byte ^ 0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(block.map(|byte| byte ^ 0x5c)).chain_update(inner).finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As a part of a query; the slash, too, is escaped.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// The signature that a request of Amazon's own examples gets.
    fn signature(method: &str, path: &str, query: &[(&str, &str)], fields: &[(&str, &str)], body: &str) -> String {
        let signer = Signer {
            id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            token: None,
            region: "us-east-1".into(),
        };
        let (host, at) = ("examplebucket.s3.amazonaws.com", "20130524T000000Z");
        let (_, signed) = signer.sign(&Unsigned { method, host, path, query, fields, body, at });
        let (_, text) = signed.into_iter().find(|(name, _)| name == "authorization").unwrap();
        assert!(text.contains("Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"), "{text}");
        text.rsplit_once('=').unwrap().1.to_owned()
    }

    /// "Signature Calculations for the Authorization Header", Amazon S3 API Reference.
    #[test]
    fn amazons_own_examples_get_the_signatures_that_they_publish() {
        for (method, path, query, fields, body, expected) in [
            (
                "GET",
                "/test.txt",
                &[][..],
                &[("range", "bytes=0-9")][..],
                EMPTY,
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
            (
                "PUT",
                "/test%24file.text",
                &[],
                &[("date", "Fri, 24 May 2013 00:00:00 GMT"), ("x-amz-storage-class", "REDUCED_REDUNDANCY")],
                "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
                "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
            ),
            (
                "GET",
                "/",
                &[("lifecycle", "")],
                &[],
                EMPTY,
                "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            ),
            (
                "GET",
                "/",
                &[("prefix", "J"), ("max-keys", "2")],
                &[],
                EMPTY,
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ] {
            assert_eq!(signature(method, path, query, fields, body), expected, "{method} {path}");
        }
    }

    /// RFC 4231, cases 2 and 6 (a key that is longer than a block).
    #[test]
    fn the_code_of_a_text_is_the_standards() {
        assert_eq!(
            hex(&mac(b"Jefe", b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            hex(&mac(&[0xaa; 131], b"Test Using Larger Than Block-Size Key - Hash Key First")),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }

    #[test]
    fn a_query_is_escaped_and_a_token_is_signed() {
        let signer = Signer { id: "i".into(), secret: "s".into(), token: Some("t".into()), region: "r".into() };
        let query = [("list-type", "2"), ("continuation-token", "a+b/c=")];
        let at = "20260101T000000Z";
        let request =
            Unsigned { method: "GET", host: "h", path: "/bucket", query: &query, fields: &[], body: EMPTY, at };
        let (target, signed) = signer.sign(&request);
        assert_eq!(target, "/bucket?continuation-token=a%2Bb%2Fc%3D&list-type=2");
        assert!(signed.contains(&("x-amz-security-token".to_owned(), "t".to_owned())));
        let names = "SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token,";
        assert!(signed.iter().any(|(name, value)| name == "authorization" && value.contains(names)));
    }
}
