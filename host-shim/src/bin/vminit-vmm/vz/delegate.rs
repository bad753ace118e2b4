//! The objects that the framework calls: they put what they are told into the inbox, no more.

use objc2::rc::Retained;
use objc2::runtime::{NSObject, NSObjectProtocol, ProtocolObject};
use objc2::{DefinedClass, MainThreadMarker, MainThreadOnly, define_class, msg_send};
use objc2_foundation::NSError;
use objc2_virtualization::{
    VZVirtioSocketConnection, VZVirtioSocketDevice, VZVirtioSocketListener,
    VZVirtioSocketListenerDelegate, VZVirtualMachine, VZVirtualMachineDelegate,
};

use super::machine::{Connection, Event, Inbox};
use super::text::failure_of;

define_class!(
    // SAFETY: NSObject has no subclassing requirements, and this has no Drop.
    #[unsafe(super(NSObject))]
    #[thread_kind = MainThreadOnly]
    #[name = "VminitdMachineDelegate"]
    #[ivars = Inbox]
    pub(super) struct MachineDelegate;

    unsafe impl NSObjectProtocol for MachineDelegate {}

    // SAFETY: the signatures are the protocol's.
    unsafe impl VZVirtualMachineDelegate for MachineDelegate {
        #[unsafe(method(guestDidStopVirtualMachine:))]
        fn guest_did_stop(&self, _machine: &VZVirtualMachine) {
            self.ivars().borrow_mut().push_back(Event::GuestStopped);
        }

        #[unsafe(method(virtualMachine:didStopWithError:))]
        fn did_stop_with_error(&self, _machine: &VZVirtualMachine, error: &NSError) {
            self.ivars().borrow_mut().push_back(Event::Failed(failure_of(error)));
        }
    }
);

impl MachineDelegate {
    /// One that tells `inbox`.
    pub fn new(main: MainThreadMarker, inbox: Inbox) -> Retained<Self> {
        let this = Self::alloc(main).set_ivars(inbox);
        // SAFETY: NSObject's init.
        unsafe { msg_send![super(this), init] }
    }

    /// Makes `machine` call this. It holds it weakly.
    pub fn attach(&self, machine: &VZVirtualMachine) {
        // SAFETY: on the main thread, whose queue the machine has.
        unsafe { machine.setDelegate(Some(ProtocolObject::from_ref(self))) };
    }
}

define_class!(
    // SAFETY: NSObject has no subclassing requirements, and this has no Drop.
    #[unsafe(super(NSObject))]
    #[thread_kind = MainThreadOnly]
    #[name = "VminitdPortDelegate"]
    #[ivars = Inbox]
    pub(super) struct PortDelegate;

    unsafe impl NSObjectProtocol for PortDelegate {}

    // SAFETY: the signature is the protocol's.
    unsafe impl VZVirtioSocketListenerDelegate for PortDelegate {
        #[unsafe(method(listener:shouldAcceptNewConnection:fromSocketDevice:))]
        fn should_accept(
            &self,
            _listener: &VZVirtioSocketListener,
            connection: &VZVirtioSocketConnection,
            _device: &VZVirtioSocketDevice,
        ) -> bool {
            let connection = Connection(connection.into());
            self.ivars().borrow_mut().push_back(Event::Dialed(connection));
            true
        }
    }
);

impl PortDelegate {
    /// One that tells `inbox`.
    pub fn new(main: MainThreadMarker, inbox: Inbox) -> Retained<Self> {
        let this = Self::alloc(main).set_ivars(inbox);
        // SAFETY: NSObject's init.
        unsafe { msg_send![super(this), init] }
    }

    /// Lets the guest dial `port`. The listener holds this weakly; keep both.
    pub fn listen(
        &self,
        device: &VZVirtioSocketDevice,
        port: u32,
    ) -> Retained<VZVirtioSocketListener> {
        // SAFETY: on the main thread, whose queue the device's machine has.
        unsafe {
            let listener = VZVirtioSocketListener::new();
            listener.setDelegate(Some(ProtocolObject::from_ref(self)));
            device.setSocketListener_forPort(&listener, port);
            listener
        }
    }
}
