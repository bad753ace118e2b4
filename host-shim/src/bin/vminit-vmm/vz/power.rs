//! The machine's wake-ups: IORegisterForSystemPower of IOKit.

use std::ffi::c_void;
use std::io;
use std::ptr::null_mut;

/// iokit_common_msg of IOMessage.h.
const CAN_SLEEP: u32 = 0xe000_0270;
const WILL_SLEEP: u32 = 0xe000_0280;
const HAS_POWERED_ON: u32 = 0xe000_0300;

type Callback = extern "C" fn(*mut c_void, u32, u32, *mut c_void);

#[link(name = "IOKit", kind = "framework")]
unsafe extern "C" {
    fn IORegisterForSystemPower(
        context: *mut c_void,
        port: *mut *mut c_void,
        callback: Callback,
        notifier: *mut u32,
    ) -> u32;
    fn IONotificationPortSetDispatchQueue(port: *mut c_void, queue: *const c_void);
    fn IOAllowPowerChange(root: u32, change: isize) -> i32;
    static _dispatch_main_q: [u8; 0];
}

/// What the callback needs; lives as long as the process.
struct Watch {
    /// The connection to the root power domain.
    root: u32,
    woke: Box<dyn Fn()>,
}

/// Calls `woke` on the main queue, as long as the process lives, each time that the machine is awake again.
pub fn on_wake(woke: impl Fn() + 'static) -> io::Result<()> {
    let watch = Box::into_raw(Box::new(Watch { root: 0, woke: Box::new(woke) }));
    let (mut port, mut notifier) = (null_mut(), 0);
    // SAFETY: the context is never freed; the out pointers live through the call; the callback is called by nobody
    // before the port has a queue.
    let root = unsafe { IORegisterForSystemPower(watch.cast(), &mut port, called, &mut notifier) };
    if root == 0 {
        return Err(io::Error::other("the system tells nothing of its sleep"));
    }
    // SAFETY: nobody else has the context before the port has a queue; the main queue lives for ever.
    unsafe {
        (*watch).root = root;
        IONotificationPortSetDispatchQueue(port, (&raw const _dispatch_main_q).cast());
    }
    Ok(())
}

extern "C" fn called(context: *mut c_void, _service: u32, message: u32, argument: *mut c_void) {
    // SAFETY: the context is what `on_wake` passed, is never freed, and is only read from then on.
    let watch = unsafe { &*context.cast::<Watch>() };
    match message {
        // Unanswered, the system would wait for us for half a minute.
        CAN_SLEEP | WILL_SLEEP => {
            // SAFETY: plain numbers, of this very message.
            let _ = unsafe { IOAllowPowerChange(watch.root, argument as isize) };
        }
        HAS_POWERED_ON => (watch.woke)(),
        _ => {}
    }
}
