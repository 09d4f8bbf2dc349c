//! Whom a server's certificate must be signed by, and what we show of ourselves: PEM files that the URL of a service names.
//!
//! Flow: `?ca=FILE&cert=FILE&key=FILE` -> [`Tls::of`], when the service is made ready -> the client library of `redis` or `etcd`.
//! Invariants: 1. With `ca` nothing but what that file holds is trusted; without it, what the system trusts. 2. A file that cannot be
//! used is found before the first call. 3. No certificate goes unchecked: there is no flag for that.

use super::remote::query;
use crate::{Code, Error};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use url::Url;

/// What stands in the files.
pub(super) struct Tls {
    /// Certificates of those who sign; what the system trusts for `None`.
    pub(super) ca: Option<Vec<u8>>,
    /// Our own certificate, with those between it and its signer, and its key.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// What `url` names.
    ///
    /// # Errors
    /// [`Code::Invalid`] for a file that cannot be read or holds something else.
    pub(super) fn of(url: &Url) -> Result<Self, Error> {
        // Where the host has chosen no provider of cryptography for its process, the client library of Redis would find none.
        if CryptoProvider::get_default().is_none() {
            // Another thread may have come first: as good.
            let _ = ring::default_provider().install_default();
        }
        let ca = certificates(url, "ca")?;
        let identity = match (certificates(url, "cert")?, key(url)?) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(Error::with_detail(Code::Invalid, "a certificate of our own has a cert and a key")),
        };
        Ok(Tls { ca, identity })
    }
}

fn certificates(url: &Url, name: &str) -> Result<Option<Vec<u8>>, Error> {
    let Some((path, pem)) = file(url, name)? else { return Ok(None) };
    let mut found = 0;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        certificate.map_err(|error| unusable(name, &path, &error))?;
        found += 1;
    }
    if found == 0 {
        return Err(unusable(name, &path, &"no certificate in PEM is in it"));
    }
    Ok(Some(pem))
}

fn key(url: &Url) -> Result<Option<Vec<u8>>, Error> {
    let Some((path, pem)) = file(url, "key")? else { return Ok(None) };
    // The reason is left out: it could tell of the key.
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| unusable("key", &path, &"no private key in PEM is in it"))?;
    Ok(Some(pem))
}

/// The file that a parameter names, and what is in it.
fn file(url: &Url, name: &str) -> Result<Option<(String, Vec<u8>)>, Error> {
    let Some(path) = query(url, name) else { return Ok(None) };
    let pem = std::fs::read(&path).map_err(|error| unusable(name, &path, &error))?;
    Ok(Some((path, pem)))
}

#[cold]
fn unusable(name: &str, path: &str, why: &dyn fmt::Display) -> Error {
    Error::with_detail(Code::Invalid, format!("{name}={path}: {why}"))
}
