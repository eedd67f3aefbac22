//! Noise_NNpsk0_25519_AESGCM_SHA256 (Noise revision 34) on aws-lc.
//!
//! `snow` brings the state machine, aws-lc the arithmetic: one cryptographic library for the whole
//! crate, and no source of randomness but the 32 bytes that the caller hands in.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::digest;
use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, Error, HandshakeState};

use super::kdf::{self, Secret};

/// Bytes that a Noise message adds to its payload: the ephemeral key and the tag.
pub(super) const NOISE_OVERHEAD: usize = 32 + 16;

const PATTERN: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";

/// The opening end's state machine. `entropy` becomes its ephemeral key.
pub(super) fn initiator(
    psk: &[u8; 32],
    prologue: &[u8],
    entropy: &[u8; 32],
) -> Result<HandshakeState, Error> {
    let seed = kdf::derive(entropy, "link ephemeral initiator");
    builder(psk, prologue, seed)?.build_initiator()
}

/// The answering end's state machine. `entropy` becomes its ephemeral key.
pub(super) fn responder(
    psk: &[u8; 32],
    prologue: &[u8],
    entropy: &[u8; 32],
) -> Result<HandshakeState, Error> {
    let seed = kdf::derive(entropy, "link ephemeral responder");
    builder(psk, prologue, seed)?.build_responder()
}

fn builder<'a>(psk: &'a [u8; 32], prologue: &'a [u8], seed: Secret) -> Result<Builder<'a>, Error> {
    let params: NoiseParams = PATTERN.parse()?;
    Builder::with_resolver(params, Box::new(Resolver { seed })).psk(0, psk)?.prologue(prologue)
}

struct Resolver {
    seed: Secret,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(OneDraw(Some(self.seed.clone()))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::<Curve>::default() as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::SHA256).then(|| Box::<Sha256>::default() as Box<dyn Hash>)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        matches!(choice, CipherChoice::AESGCM).then(|| Box::<AesGcm>::default() as Box<dyn Cipher>)
    }
}

/// Randomness for one ephemeral key; a second draw is an error instead of a repetition.
struct OneDraw(Option<Secret>);

impl Random for OneDraw {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
        let seed = self.0.take().ok_or(Error::Rng)?;
        dest.copy_from_slice(seed.get(..dest.len()).ok_or(Error::Rng)?);
        Ok(())
    }
}

/// X25519. aws-lc refuses points of low order, whose shared secret would be zero.
#[derive(Default)]
struct Curve {
    private: Option<PrivateKey>,
    public: [u8; 32],
}

impl Curve {
    fn try_set(&mut self, scalar: &[u8]) -> Option<()> {
        let private = PrivateKey::from_private_key(&X25519, scalar).ok()?;
        self.public = private.compute_public_key().ok()?.as_ref().try_into().ok()?;
        self.private = Some(private);
        Some(())
    }
}

impl Dh for Curve {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, privkey: &[u8]) {
        // A key that was refused stays absent, and `dh` says so.
        let _ = self.try_set(privkey);
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        let mut scalar = Secret::default();
        rng.try_fill_bytes(scalar.as_mut_slice())?;
        self.try_set(scalar.as_slice()).ok_or(Error::Dh)
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    /// Empty: the scalar stays inside aws-lc, and no handshake asks for it.
    fn privkey(&self) -> &[u8] {
        &[]
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), Error> {
        #[cfg(test)]
        tests::count_dh();
        let private = self.private.as_ref().ok_or(Error::Dh)?;
        let theirs = UnparsedPublicKey::new(&X25519, pubkey.get(..32).ok_or(Error::Dh)?);
        let out = out.get_mut(..32).ok_or(Error::Dh)?;
        agreement::agree(private, theirs, Error::Dh, |shared| {
            out.copy_from_slice(shared);
            Ok(())
        })
    }
}

struct Sha256(digest::Context);

impl Default for Sha256 {
    fn default() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }
}

impl Hash for Sha256 {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        *self = Self::default();
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        let ended = std::mem::take(self).0.finish();
        out[..32].copy_from_slice(ended.as_ref());
    }
}

#[derive(Default)]
struct AesGcm(Option<LessSafeKey>);

impl AesGcm {
    /// 4 zero bytes and the counter, as Noise section 12.4 has it.
    fn nonce(counter: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&counter.to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    }
}

impl Cipher for AesGcm {
    fn name(&self) -> &'static str {
        "AESGCM"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.0 = UnboundKey::new(&AES_256_GCM, key).ok().map(LessSafeKey::new);
    }

    /// `snow` has set a key and checked that `out` has room for the tag.
    fn encrypt(&self, nonce: u64, authtext: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let key = self.0.as_ref().expect("BUG! Noise cipher without a key");
        let (text, tag_space) = out.split_at_mut(plaintext.len());
        text.copy_from_slice(plaintext);
        let tag = key
            .seal_in_place_separate_tag(Self::nonce(nonce), Aad::from(authtext), text)
            .expect("BUG! AES-GCM of a short message");
        tag_space[..16].copy_from_slice(tag.as_ref());
        plaintext.len() + 16
    }

    fn decrypt(
        &self,
        nonce: u64,
        authtext: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let key = self.0.as_ref().ok_or(Error::Decrypt)?;
        let (text, tag) = ciphertext.split_last_chunk::<16>().ok_or(Error::Decrypt)?;
        let out = out.get_mut(..text.len()).ok_or(Error::Decrypt)?;
        key.open_separate_gather(Self::nonce(nonce), Aad::from(authtext), text, tag, out)
            .map_err(|_| Error::Decrypt)?;
        Ok(text.len())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! { static DH_COUNT: Cell<usize> = const { Cell::new(0) } }

    pub(super) fn count_dh() {
        DH_COUNT.set(DH_COUNT.get() + 1);
    }

    /// How many Diffie-Hellman operations this thread has done.
    pub(in crate::crypto) fn dh_count() -> usize {
        DH_COUNT.get()
    }

    /// Given the vector of RFC 7748 section 6.1, expect its public key and shared secret.
    #[test]
    fn curve_agrees_with_rfc_7748() {
        let alice = hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
        let bob = hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
        let mut curve = Curve::default();
        curve.set(&alice);
        assert_eq!(
            curve.pubkey(),
            hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
        );
        let mut shared = [0; 32];
        curve.dh(&bob, &mut shared).unwrap();
        assert_eq!(shared, hex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"));
    }

    /// Given points of low order, expect an error instead of a zero secret.
    #[test]
    fn curve_refuses_low_order() {
        let mut curve = Curve::default();
        curve.set(&[7; 32]);
        let one = {
            let mut p = [0; 32];
            p[0] = 1;
            p
        };
        for point in [[0; 32], one] {
            assert!(curve.dh(&point, &mut [0; 32]).is_err());
        }
    }

    /// Given a holder of the key who sends a point of low order, expect the answer to fail instead
    /// of going out under a secret that anybody can compute.
    #[test]
    fn low_order_ephemeral_ends_the_handshake() {
        let psk = [3; 32];
        let mut attacker = Builder::with_resolver(PATTERN.parse().unwrap(), Box::new(LowOrder))
            .psk(0, &psk)
            .unwrap()
            .build_initiator()
            .unwrap();
        let mut message = [0; NOISE_OVERHEAD];
        attacker.write_message(&[], &mut message).unwrap();
        assert_eq!(message[..32], [0; 32]);
        let mut victim = responder(&psk, &[], &[4; 32]).unwrap();
        victim.read_message(&message, &mut []).unwrap();
        let refused = victim.write_message(&[], &mut [0; NOISE_OVERHEAD]);
        assert!(matches!(refused, Err(Error::Dh)));
    }

    /// Claims a public key of zeros.
    struct LowOrder;

    impl CryptoResolver for LowOrder {
        fn resolve_rng(&self) -> Option<Box<dyn Random>> {
            Resolver { seed: Secret::default() }.resolve_rng()
        }

        fn resolve_dh(&self, _: &DHChoice) -> Option<Box<dyn Dh>> {
            Some(Box::new(LowOrder))
        }

        fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
            Resolver { seed: Secret::default() }.resolve_hash(choice)
        }

        fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
            Resolver { seed: Secret::default() }.resolve_cipher(choice)
        }
    }

    impl Dh for LowOrder {
        fn name(&self) -> &'static str {
            "25519"
        }

        fn pub_len(&self) -> usize {
            32
        }

        fn priv_len(&self) -> usize {
            32
        }

        fn set(&mut self, _: &[u8]) {}

        fn generate(&mut self, _: &mut dyn Random) -> Result<(), Error> {
            Ok(())
        }

        fn pubkey(&self) -> &[u8] {
            &[0; 32]
        }

        fn privkey(&self) -> &[u8] {
            &[]
        }

        fn dh(&self, _: &[u8], _: &mut [u8]) -> Result<(), Error> {
            Ok(())
        }
    }

    /// Given a source of one draw, expect the second to fail.
    #[test]
    fn randomness_is_drawn_once() {
        let mut rng = OneDraw(Some(Secret::new([9; 32])));
        rng.try_fill_bytes(&mut [0; 32]).unwrap();
        assert!(rng.try_fill_bytes(&mut [0; 32]).is_err());
    }

    fn hex(text: &str) -> [u8; 32] {
        let mut out = [0; 32];
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap();
        }
        out
    }
}
