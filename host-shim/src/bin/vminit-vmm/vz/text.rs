//! Between the framework's objects and ours.

use std::path::Path;

use objc2::rc::Retained;
use objc2_foundation::{NSError, NSURL};

use host_shim::vz::failure::Failure;

/// All that an error says.
pub fn failure_of(error: &NSError) -> Failure {
    let text = |text: Option<Retained<objc2_foundation::NSString>>| {
        text.map(|text| text.to_string()).unwrap_or_default()
    };
    Failure {
        domain: error.domain().to_string(),
        code: error.code(),
        text: error.localizedDescription().to_string(),
        reason: text(error.localizedFailureReason()),
        suggestion: text(error.localizedRecoverySuggestion()),
        underlying: error
            .underlyingErrors()
            .firstObject()
            .map(|under| Box::new(failure_of(&under))),
    }
}

/// A file's URL; `None` for a path with a NUL.
pub fn url(path: &Path) -> Option<Retained<NSURL>> {
    NSURL::from_file_path(path)
}
