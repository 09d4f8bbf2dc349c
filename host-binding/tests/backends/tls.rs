//! Connections by TLS: certificates made for the test, servers that have them, and who is refused.

#![allow(dead_code, reason = "each back end uses some of it")]

use crate::faults;
use kvasi_wasmtime::Code;
use kvasi_wasmtime::backend::remote::{Policy, RemoteBucket, connect};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Files of certificates, gone with the value.
pub(crate) struct Certificates {
    dir: TempDir,
}

impl Certificates {
    /// An authority, a server's certificate for `names`, a client's, and another authority that has signed neither.
    pub(crate) fn of(names: &[&str]) -> Certificates {
        let made = Certificates { dir: tempfile::tempdir().unwrap() };
        let ours = authority("ours");
        made.write("ca.pem", &ours.pem());
        made.write("other.pem", &authority("others").pem());
        made.write("none.pem", "there is nothing here");
        for (name, names) in [("server", names), ("client", &[])] {
            let key = KeyPair::generate().unwrap();
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut params = CertificateParams::new(names).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            // A server of etcd is also a client of itself.
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            made.write(&format!("{name}.pem"), &params.signed_by(&key, &ours).unwrap().pem());
            made.write(&format!("{name}.key"), &key.serialize_pem());
        }
        made
    }

    fn write(&self, name: &str, pem: &str) {
        std::fs::write(self.path(name), pem).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Parameters of a URL that name files.
    fn query(&self, files: &[(&str, &str)]) -> String {
        let named: Vec<String> =
            files.iter().map(|(name, file)| format!("{name}={}", shown(&self.path(file)))).collect();
        named.join("&")
    }
}

fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

const POLICY: Policy = Policy { timeout: Duration::from_secs(2), attempts_max: 2, pause: Duration::from_millis(20) };

async fn bucket(url: &str) -> Arc<dyn RemoteBucket> {
    connect(&url.parse().unwrap(), POLICY).await.unwrap().bucket("tls").unwrap()
}

/// A server at `url` that asks for a client's certificate: who names its authority and shows one of its certificates is served, anybody
/// else is refused in time, by an error that names neither server nor password.
pub(crate) async fn is_checked_on_both_sides(url: &str, files: &Certificates) {
    let url = format!("{url}{}", if url.contains('?') { '&' } else { '?' });
    let with = |named: &[(&str, &str)]| url.clone() + &files.query(named);
    let own = [("cert", "client.pem"), ("key", "client.key")];
    let served = bucket(&with(&[&[("ca", "ca.pem")], &own[..]].concat())).await;
    let begun = Instant::now();
    while let Err(error) = served.set("k", b"1").await {
        assert!(begun.elapsed() < Duration::from_secs(30), "still {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(served.increment("k", 1).await.unwrap(), 2);
    assert_eq!(served.get("k").await.unwrap().as_deref(), Some(&b"2"[..]));

    for (named, words) in [
        // What the system trusts has not signed it.
        (&[][..], "UnknownIssuer"),
        (&[("ca", "other.pem")], "UnknownIssuer"),
        // No certificate of ours: what is said depends on how far the handshake was.
        (&[("ca", "ca.pem")], ""),
    ] {
        let begun = Instant::now();
        let error = bucket(&with(named)).await.increment("k", 1).await.unwrap_err();
        assert!(begun.elapsed() < POLICY.timeout + Duration::from_secs(1), "{named:?} took {:?}", begun.elapsed());
        faults::nameless(&error);
        let refused = matches!(error.code(), Code::Io | Code::Indeterminate | Code::Busy);
        assert!(refused && error.to_string().contains(words), "{named:?}: {error}");
    }
    assert_eq!(served.get("k").await.unwrap().as_deref(), Some(&b"2"[..]), "who is refused has changed nothing");

    for named in [("ca", "missing.pem"), ("ca", "none.pem"), ("cert", "none.pem")] {
        let refused = connect(&with(&[named, ("key", "client.key")]).parse().unwrap(), POLICY).await;
        let error = refused.err().unwrap();
        assert!(error.code() == Code::Invalid && error.to_string().contains(named.1), "{named:?}: {error}");
    }
    let refused = connect(&with(&[("cert", "client.pem"), ("key", "none.pem")]).parse().unwrap(), POLICY).await;
    assert!(refused.err().unwrap().to_string().contains("no private key"));
}

/// A server whose certificate is for another name.
pub(crate) async fn another_name_is_refused(url: &str, files: &Certificates) {
    let named = files.query(&[("ca", "ca.pem"), ("cert", "client.pem"), ("key", "client.key")]);
    let bucket = bucket(&format!("{url}?{named}")).await;
    let begun = Instant::now();
    loop {
        let error = bucket.get("k").await.unwrap_err();
        faults::nameless(&error);
        if error.to_string().contains("for another name") {
            return;
        }
        // It may not listen yet.
        assert!(begun.elapsed() < Duration::from_secs(30), "{error}");
    }
}
