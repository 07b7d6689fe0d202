"""A host whose kernel has no BPF among its security modules: it says so, and what to do."""

import unittest

import waiting
from host_vm import HostVm


class WithoutBpf(unittest.TestCase):
    def test_kernel_without_the_security_module_says_what_to_do(self):
        host = HostVm("plain", lsm="landlock,lockdown,yama,integrity,apparmor")
        self.addCleanup(host.close)
        host.start()
        refused = host.run("usblease-fence load", check=False)
        self.assertEqual(refused.code, 3)
        self.assertRegex(refused.output, r"BPF is not among the kernel's security modules \(.*\); start the kernel with lsm=.*,bpf")
        self.assertEqual(host.run("usblease-fence serve", check=False).code, 3)
        host.run("usbleased >/tmp/usbleased.log 2>&1 </dev/null &")
        waiting.wait_until(
            lambda: host.run("cat /tmp/usbleased.log").output, lambda: host.run("usblease list", check=False).code == 0, 60
        )
        self.assertRegex(host.output("usblease host info"), r"(?m)^ kernel +no +BPF is not among the kernel's security modules")
