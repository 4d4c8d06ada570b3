//! What protects the packets of lanes, and whose code does it: AES-GCM is the largest single cost of a packet, and which implementation
//! of it is the fastest depends on the processor.
//!
//! aws-lc, which TLS has, uses VAES with AVX-512 alone; ring also with AVX2, which is all that AMD before Zen 4 and Intel's processors
//! without AVX-512 have. There ring takes 0.6 of the time. Everything else is aws-lc's, key derivation and ChaCha20-Poly1305 included.

use rustls::Tls13CipherSuite;
use rustls::crypto::{aws_lc_rs, ring};
use rustls::quic::Suite;

/// What protects a lane's packets: the AEADs of TLS 1.3 (RFC 8446 appendix B.4), by their registered numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Cipher {
    /// AES-128-GCM: the fastest where the processor has AES.
    Aes128Gcm = 0x1301,
    /// AES-256-GCM.
    Aes256Gcm = 0x1302,
    /// ChaCha20-Poly1305: the fastest elsewhere.
    ChaCha20Poly1305 = 0x1303,
}

impl Cipher {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Aes128Gcm, Self::Aes256Gcm, Self::ChaCha20Poly1305];

    /// From its number.
    pub fn from_wire(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|cipher| *cipher as u16 == number)
    }

    /// The first that the dialer names and the acceptor has; both sides come to the same.
    pub fn agreed(dialer: &[u16], acceptor: &[u16]) -> Option<Self> {
        dialer.iter().filter(|number| acceptor.contains(number)).find_map(|number| Self::from_wire(*number))
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aes128Gcm => "AES-128-GCM",
            Self::Aes256Gcm => "AES-256-GCM",
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
        }
    }
}

/// Who implements the AEADs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// aws-lc.
    AwsLc,
    /// ring.
    Ring,
}

impl Provider {
    /// The faster one for a cipher on this processor.
    pub fn fastest(cipher: Cipher) -> Self {
        match cipher {
            Cipher::Aes128Gcm | Cipher::Aes256Gcm if has_vaes() && !has_avx512() => Self::Ring,
            _ => Self::AwsLc,
        }
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AwsLc => "aws-lc",
            Self::Ring => "ring",
        }
    }

    /// The QUIC keys of a cipher: the same with either.
    pub(super) fn suite(self, cipher: Cipher) -> Suite {
        use {aws_lc_rs::cipher_suite as aws_lc, ring::cipher_suite as ring};
        let suite = match (cipher, self) {
            (Cipher::Aes128Gcm, Self::AwsLc) => aws_lc::TLS13_AES_128_GCM_SHA256,
            (Cipher::Aes128Gcm, Self::Ring) => ring::TLS13_AES_128_GCM_SHA256,
            (Cipher::Aes256Gcm, Self::AwsLc) => aws_lc::TLS13_AES_256_GCM_SHA384,
            (Cipher::Aes256Gcm, Self::Ring) => ring::TLS13_AES_256_GCM_SHA384,
            (Cipher::ChaCha20Poly1305, Self::AwsLc) => aws_lc::TLS13_CHACHA20_POLY1305_SHA256,
            (Cipher::ChaCha20Poly1305, Self::Ring) => ring::TLS13_CHACHA20_POLY1305_SHA256,
        };
        let quic = suite.tls13().and_then(Tls13CipherSuite::quic_suite);
        quic.expect("both have QUIC keys for every suite of TLS 1.3")
    }
}

/// Whether the processor has instructions for AES, without which ChaCha20 is faster.
pub fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let has = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has = false;
    has
}

/// What ring asks for to use VAES.
#[cfg(target_arch = "x86_64")]
fn has_vaes() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("vaes") && has!("vpclmulqdq") && has!("avx2")
}

/// What aws-lc asks for besides.
#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx512f") && has!("avx512dq") && has!("avx512bw") && has!("avx512vl")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_vaes() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}
