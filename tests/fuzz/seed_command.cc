// Writes first inputs for fuzz_command into a directory: sequences of commands that make sense, and the records that
// they leave. Without them the fuzzer would have to guess UUIDs.
#include <cstdio>
#include <fstream>

#include "tests/unit/lease/world.h"

using namespace usblease;
using namespace usblease::lease::test;

namespace {

std::string chunk(const std::string& bytes) {
  return {static_cast<char>(bytes.size() & 0xFF), static_cast<char>(bytes.size() >> 8 & 0xFF)};
}

std::string commands_of(const World& world) {
  std::string out;
  for (const std::string& command : world.applied) out += chunk("c" + command) + "c" + command;
  return out;
}

std::string records_of(const World& world) {
  std::string out;
  for (const auto& [key, value] : entries_of(world.state())) {
    const std::string record = "r" + key + std::string(1, '\0') + value;
    out += chunk(record) + record;
  }
  return out;
}

World queue() {
  World w;
  w.host("h1");
  w.host("h2");
  w.plug("dongle", "h1");
  w.plug("phone", "h2", {.kind = record::DEVICE_KIND_ENDPOINT});
  w.acquire("r1", "a@h1", {"dongle"}, {.duration_s = 60});
  w.acquire("r2", "b@h2", {"dongle", "phone"}, {.priority = 3});
  w.acquire("r3", "a@h2", {"dongle"}, {.reservation = true, .start = 2});
  w.release("a@h1");
  w.fenced("dongle", 1, "h1");
  w.revoke("dongle", 1'000);
  w.grace_over("dongle", 2);
  w.fenced("dongle", 2, "h1");
  w.extend("phone", 5);
  w.cancel("r2");
  return w;
}

World faults() {
  World w = queue();
  w.host_gone("h1");
  w.host("h1", 2, {{.device = "phone", .armed = 9, .fenced = 3}});
  w.new_epoch(7);
  w.plug("dongle", "h1", {.counter = 4, .boot = 2});
  w.declare_dead("h2");
  w.forget("phone", "h2");
  w.until_over("dongle", 1);
  return w;
}

void write(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s DIRECTORY\n", argv[0]);
    return 2;
  }
  const std::string directory = argv[1];
  write(directory + "/queue", commands_of(queue()));
  write(directory + "/faults", commands_of(faults()));
  write(directory + "/records", records_of(queue()) + commands_of(faults()));
  write(directory + "/behind", records_of(faults()) + commands_of(queue()));
  return 0;
}
