//! What Virtualization.framework says of a failure, as text for people.
//! Promises: nothing of it is left out: domain, code, all its texts, and what lies beneath; and what our users meet most
//! is told with what to do.

use std::fmt;

/// An NSError.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    /// Whose number it is: `VZErrorDomain`.
    pub domain: String,
    /// The number.
    pub code: isize,
    /// localizedDescription.
    pub text: String,
    /// localizedFailureReason; may be empty.
    pub reason: String,
    /// localizedRecoverySuggestion; may be empty.
    pub suggestion: String,
    /// NSUnderlyingErrorKey.
    pub underlying: Option<Box<Failure>>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.domain, self.code, bare(&self.text))?;
        for more in [&self.reason, &self.suggestion] {
            // Often the same again.
            if !more.is_empty() && !self.text.contains(bare(more)) {
                write!(f, "; {}", bare(more))?;
            }
        }
        if let Some(underlying) = &self.underlying {
            write!(f, ": {underlying}")?;
        }
        match self.hint() {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl Failure {
    /// What to do about it, where we know.
    fn hint(&self) -> Option<&'static str> {
        let told = format!("{} {}", self.text, self.reason);
        if told.contains("com.apple.security.virtualization") {
            return Some(
                "sign vminit-vmm again: codesign --force --sign - --entitlements share/vminitd/vminit-vmm.entitlements bin/vminit-vmm",
            );
        }
        if told.contains("com.apple.vm.networking") {
            return Some("Apple grants this entitlement one by one; use a user network instead");
        }
        // VZErrorVirtualMachineLimitExceeded.
        (self.domain == "VZErrorDomain" && self.code == 6)
            .then_some("macOS has as many VMs running as it allows; end one")
    }
}

/// Without the full stop.
fn bare(text: &str) -> &str {
    text.trim().trim_end_matches('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_with_domain_code_and_all_its_texts() {
        let beneath = Failure {
            domain: "NSPOSIXErrorDomain".into(),
            code: 13,
            text: "Permission denied".into(),
            ..Failure::default()
        };
        let failure = Failure {
            domain: "VZErrorDomain".into(),
            code: 2,
            text: "Invalid virtual machine configuration.".into(),
            reason: "The storage device attachment is invalid.".into(),
            suggestion: "Invalid virtual machine configuration.".into(),
            underlying: Some(Box::new(beneath)),
        };
        assert_eq!(
            failure.to_string(),
            "VZErrorDomain 2: Invalid virtual machine configuration; The storage device attachment is invalid: NSPOSIXErrorDomain 13: Permission denied"
        );
    }

    #[test]
    fn what_is_met_most_is_told_with_what_to_do() {
        let told = |code, reason: &str| {
            let (domain, reason) = ("VZErrorDomain".into(), reason.into());
            Failure { domain, code, reason, ..Failure::default() }.to_string()
        };
        assert!(
            told(2, "needs the entitlement com.apple.security.virtualization")
                .contains("codesign --force --sign -")
        );
        assert!(told(2, "needs com.apple.vm.networking").contains("user network"));
        assert!(told(6, "").contains("end one"));
        assert!(!told(1, "").contains('('));
    }
}
