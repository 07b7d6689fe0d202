// Devices, and the relays that stand before them. Both live outside of the daemon: they go on when it is dead.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "relay.pb.h"
#include "tests/sim/kernel.h"

namespace usblease::sim {

class Device;

// One connection to a device's endpoint. It is a descriptor of whoever connected.
class DeviceStream : public Descriptor, public std::enable_shared_from_this<DeviceStream> {
 public:
  enum class State : std::uint8_t { kWaiting, kServed, kEnding, kEnded };
  DeviceStream(Device& device, Process* client) : device_(device), client_(client) {}
  void closed() override;

  // Told in the client's process; a relay that takes the stream over sets them anew.
  void on_hello(Process* client, std::function<void()> callback);
  void on_end(std::function<void()> callback) { ended_ = std::move(callback); }

  [[nodiscard]] State state() const { return state_; }
  std::uint64_t token = 0;  // under which packets passed; 0: none did

 private:
  friend class Device;
  Device& device_;
  Process* client_;
  State state_ = State::kWaiting;
  std::function<void()> hello_;
  std::function<void()> ended_;
};

// A device behind a usbredir endpoint: it serves one stream at a time, and says hello on the next one when every
// transfer of the one before is dead.
class Device {
 public:
  Device(Kernel& kernel, std::string name) : kernel_(kernel), name_(std::move(name)) {}
  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] bool plugged() const { return plugged_; }
  void plug();
  void unplug();
  // nullptr: nobody listens.
  std::shared_ptr<DeviceStream> connect(Process* client);

  // Under which token, and by whom, transfers can complete now. 0: by nobody.
  [[nodiscard]] std::uint64_t live_token() const { return current_ ? current_->token : 0; }

 private:
  friend class DeviceStream;
  void serve_next();
  void client_closed(const std::shared_ptr<DeviceStream>& stream);
  void finish(const std::shared_ptr<DeviceStream>& stream);

  Kernel& kernel_;
  std::string name_;
  bool plugged_ = true;
  std::shared_ptr<DeviceStream> current_;
  std::deque<std::shared_ptr<DeviceStream>> waiting_;
};

// A guest's end of its stream, as the daemon or a relay holds it.
class GuestConnection : public Descriptor {
 public:
  GuestConnection(std::string guest_uuid, std::string device)
      : guest_uuid(std::move(guest_uuid)), device(std::move(device)) {}
  void closed() override {
    open = false;
    if (on_closed) on_closed();
  }
  // QEMU is gone: whoever holds the other end sees the end of the stream.
  void guest_gone() {
    guest_lives = false;
    if (on_guest_gone) on_guest_gone();
  }
  const std::string guest_uuid;
  const std::string device;
  bool open = true;
  bool guest_lives = true;
  std::function<void()> on_closed;
  std::function<void()> on_guest_gone;
};

// usblease-relay (docs/relay.md): one stream, one deadline of its own.
class RelayProcess {
 public:
  struct Start {
    std::string device;
    std::uint64_t token = 0;
    std::string guest_uuid;
    std::uint64_t instance = 0;
    int peer_pid = 0;
    Ns deadline_ns = 0;  // on its machine's clock
    int guest_fd = -1;
    int endpoint_fd = -1;
  };
  RelayProcess(Kernel& kernel, Process& process, Start start);

  // What docs/relay.md calls the control socket: messages as bytes, both ways.
  void connect(Process* daemon, std::function<void(std::string)> to_daemon, std::function<void()> broken);
  void disconnect(Process* daemon);
  void hear(const std::string& bytes);
  // Its peers see the end of their streams `unseen_ns` later: a machine without power closes nothing.
  void die(Ns unseen_ns = 0);

  [[nodiscard]] bool forwards() const;
  [[nodiscard]] bool alive() const { return !process_.dead; }
  [[nodiscard]] const Start& start() const { return start_; }
  [[nodiscard]] Process& process() const { return process_; }
  const Ns born_ns;

 private:
  void begin();
  bool tick();
  void arm_timer();
  void end(relay::Ending why);
  void on_endpoint_end();
  void tell(const relay::ToDaemon& message);
  void tell_all();

  Kernel& kernel_;
  Process& process_;
  Start start_;
  std::shared_ptr<DeviceStream> endpoint_;
  std::shared_ptr<GuestConnection> guest_;
  bool connected_ = false;
  bool fenced_ = false;
  relay::Ending ended_ = relay::ENDING_UNSPECIFIED;
  Process* daemon_ = nullptr;
  std::function<void(std::string)> to_daemon_;
  std::function<void()> broken_;
};

}  // namespace usblease::sim
