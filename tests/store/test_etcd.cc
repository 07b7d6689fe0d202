// The contract on real etcd: one member, and three with mutual TLS.
#include <memory>
#include <string>

#include "tests/store/etcd_lab.h"

namespace usblease::store_test {
namespace {

// Every test case has a prefix of its own in the same etcd. Plain pointers: a case is forked off, and its exit must not
// end what is its parent's.
Certificates* g_certificates = nullptr;
EtcdLab* g_lab = nullptr;

void start_one() { g_lab = std::make_unique<EtcdLab>(EtcdLabOptions{}).release(); }

void start_three() {
  g_certificates = std::make_unique<Certificates>("contract").release();
  g_lab = std::make_unique<EtcdLab>(EtcdLabOptions{3, g_certificates, {}}).release();
}

void stop() {
  std::unique_ptr<EtcdLab>(g_lab).reset();
  std::unique_ptr<Certificates>(g_certificates).reset();
}

std::unique_ptr<Backend> make(TestLoop&) { return std::make_unique<EtcdBackend>(*g_lab); }

}  // namespace
}  // namespace usblease::store_test

int main(int argc, char** argv) {
  using namespace usblease::store_test;
  const bool three = argc > 1 && std::string(argv[1]) == "three";
  Suite* const suite = suite_create("etcd");
  if (three) {
    add_contract(suite, {"etcd-three-tls", make, start_three, stop});
  } else {
    add_contract(suite, {"etcd", make, start_one, stop});
  }
  return run_suite(suite);
}
