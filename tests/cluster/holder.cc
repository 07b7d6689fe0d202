// lease-holder: a holder of leases for the tests of tests/cluster, in place of libvirt and QEMU.
//
//   lease-holder guest   --socket PATH --run-dir DIR --pid-dir DIR --history FILE --name NAME -uuid UUID
//                        --device NAME… [--wait-ms N] [--hold-ms N] [--packet-ms N] [--connects 0]
//   lease-holder ended   --socket PATH --history FILE --name NAME -uuid UUID
//   lease-holder bare    --socket PATH --history FILE --name NAME --device NAME… [--wait-ms N] [--hold-ms N] [--seed N]
//   lease-holder release --socket PATH --history FILE --name NONCE -uuid UUID
#include "tests/cluster/holder.h"

#include <getopt.h>

#include <csignal>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <iostream>
#include <map>

namespace usblease::cluster_test {
namespace {

volatile std::sig_atomic_t told = 0;

void on_signal(int /*number*/) { told = 1; }

std::uint32_t number_of(const char* text) { return static_cast<std::uint32_t>(std::strtoul(text, nullptr, 10)); }

bool parse(int argc, char** argv, HolderOptions& o) {
  const std::map<char, std::function<void(const char*)>> setters = {
      {'s', [&](const char* v) { o.socket_path = v; }},
      {'r', [&](const char* v) { o.run_dir = v; }},
      {'p', [&](const char* v) { o.pid_dir = v; }},
      {'y', [&](const char* v) { o.history_path = v; }},
      {'n', [&](const char* v) { o.name = v; }},
      {'u', [&](const char* v) { o.uuid = v; }},
      {'d', [&](const char* v) { o.devices.push_back(v); }},
      {'w', [&](const char* v) { o.wait_ms = number_of(v); }},
      {'h', [&](const char* v) { o.hold_ms = number_of(v); }},
      {'k', [&](const char* v) { o.packet_ms = number_of(v); }},
      {'e', [&](const char* v) { o.seed = number_of(v); }},
      {'c', [&](const char* v) { o.connects = number_of(v) != 0; }}};
  const option names[] = {{"socket", required_argument, nullptr, 's'},
                          {"run-dir", required_argument, nullptr, 'r'},
                          {"pid-dir", required_argument, nullptr, 'p'},
                          {"history", required_argument, nullptr, 'y'},
                          {"name", required_argument, nullptr, 'n'},
                          {"uuid", required_argument, nullptr, 'u'},
                          {"device", required_argument, nullptr, 'd'},
                          {"wait-ms", required_argument, nullptr, 'w'},
                          {"hold-ms", required_argument, nullptr, 'h'},
                          {"packet-ms", required_argument, nullptr, 'k'},
                          {"seed", required_argument, nullptr, 'e'},
                          {"connects", required_argument, nullptr, 'c'},
                          {nullptr, 0, nullptr, 0}};
  // With one dash too: the daemon looks for "-uuid UUID" among the arguments of a guest's process.
  for (int c = 0; (c = getopt_long_only(argc, argv, "", names, nullptr)) != -1;) {
    const auto setter = setters.find(static_cast<char>(c));
    if (setter == setters.end()) return false;
    setter->second(optarg);
  }
  return optind == argc && !o.socket_path.empty() && !o.history_path.empty();
}

}  // namespace

bool told_to_end() { return told != 0; }

void sleep_ms(std::uint32_t duration_ms) {
  timespec rest{duration_ms / 1000, static_cast<long>(duration_ms % 1000) * 1'000'000};
  while (!told_to_end() && nanosleep(&rest, &rest) != 0) {
  }
}

namespace {

int run(int argc, char** argv) {
  const std::map<std::string, int (*)(const HolderOptions&)> modes = {
      {"guest", run_guest}, {"ended", run_ended}, {"bare", run_bare}, {"release", run_release}};
  HolderOptions options;
  const auto mode = modes.find(argc > 1 ? argv[1] : "");
  if (mode == modes.end() || !parse(argc - 1, argv + 1, options)) {
    std::cerr << "lease-holder: bad usage; see tests/cluster/holder.cc\n";
    return 2;
  }
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  return mode->second(options);
}

}  // namespace
}  // namespace usblease::cluster_test

int main(int argc, char** argv) { return usblease::cluster_test::run(argc, argv); }
