//! The initial file system of a virtual machine: a cpio archive ("newc", uncompressed, as the
//! kernel's Documentation/driver-api/early-userspace/buffer-format.rst lays down).

use std::collections::BTreeSet;

/// An archive under construction.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
    directories: BTreeSet<String>,
}

impl Archive {
    /// Adds a file, and the directories above it.
    pub(super) fn file(&mut self, name: &str, data: &[u8], mode: u32) {
        self.directories_of(name);
        self.entry(name, 0o100_000 | mode, data, (0, 0));
    }

    /// Adds a character device.
    pub(super) fn device(&mut self, name: &str, major: u32, minor: u32) {
        self.directories_of(name);
        self.entry(name, 0o020_600, &[], (major, minor));
    }

    /// The finished archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }

    fn directories_of(&mut self, name: &str) {
        for (end, _) in name.match_indices('/') {
            let directory = &name[..end];
            if self.directories.insert(directory.to_owned()) {
                self.entry(directory, 0o040_755, &[], (0, 0));
            }
        }
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8], device: (u32, u32)) {
        self.inodes += 1;
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let fields = [
            self.inodes,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn an_archive_has_its_directories_before_its_files_and_ends_with_the_trailer() {
        let mut archive = Archive::default();
        archive.file("a/b/c", b"hello", 0o644);
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        let at = |what: &str| text.find(what).unwrap();
        assert!(at("a\0") < at("a/b\0") && at("a/b\0") < at("a/b/c\0"));
        assert!(at("hello") < at("TRAILER!!!"));
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..6], b"070701");
    }
}
