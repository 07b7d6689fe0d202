// The part of the hook that runs only for a guest that may declare something: a module of its own, which main.cc loads.
#pragma once

#include <cstddef>
#include <cstdint>

// What crosses from the program to the module: plain C, because the program has no C++ library.
struct UsbleaseHookRun {
  const char* guest_name;
  const char* operation;
  std::uint64_t invoked_boottime_ns;
  const char* xml;
  std::size_t xml_size;
  const char* config_path;
};

// The exit status; says why on stderr, in one line, when it is not 0. Never writes to stdout: there, at migrate and
// restore, libvirt would read a changed XML.
extern "C" int usblease_hook_run(const UsbleaseHookRun* run) noexcept;
