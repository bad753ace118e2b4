//! Pseudo-random bytes and a checksum that depends on every byte's place: the same as in the guest's `vsock-peer`.

/// Bytes that follow from a seed.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next bytes. Every call but the last must ask for a multiple of eight.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }

    pub fn bytes(mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.fill(&mut bytes);
        bytes
    }
}

/// The checksum of a stream.
#[derive(Default)]
pub struct Hash {
    state: u64,
    rest: Vec<u8>,
    count: u64,
}

impl Hash {
    pub fn update(&mut self, bytes: &[u8]) {
        self.count += bytes.len() as u64;
        let mut all = std::mem::take(&mut self.rest);
        all.extend_from_slice(bytes);
        let words = all.chunks_exact(8);
        self.rest = words.remainder().to_vec();
        for word in words {
            self.mix_in(u64::from_le_bytes(word.try_into().expect("eight bytes")));
        }
    }

    /// `COUNT HASH`, as the guest writes it.
    pub fn finish(mut self) -> String {
        for byte in std::mem::take(&mut self.rest) {
            self.mix_in(u64::from(byte));
        }
        format!("{} {:016x}", self.count, self.state)
    }

    fn mix_in(&mut self, word: u64) {
        self.state = (self.state.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}
