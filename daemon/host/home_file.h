// What a home must remember by itself: for each device the tokens that it has armed and fenced (docs/architecture.md,
// safety argument 3, 4 and 7).
//
// All calls and callbacks are on the main loop's thread; the disk is touched by a worker thread. Updates that wait
// together are written together. A callback says success only when its update is on disk; callbacks run in the order
// of the calls. When a write fails, its updates fail, and what is in memory is again what is on disk.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/error.h"
#include "daemon/host/file_writer.h"
#include "home.pb.h"

namespace usblease::host {

class HomeFile {
 public:
  template <typename T>
  using Done = std::function<void(Result<T>)>;

  struct SuppliedFloor {
    std::string device;
    std::uint64_t floor = 0;  // nothing at or below it is armed again
    // Of a lease that may be armed here although this file does not know it: its end must be proved. 0: none.
    std::uint64_t armed = 0;
    std::uint64_t instance = 0;
    std::string boot_id;
  };

  // Reads and checks `path`, and takes its directory for this process alone. A file that is absent is a new disk:
  // has_floors() is false. kRefused, with what to do: damaged, of another host, of a newer format, in use.
  static Result<std::unique_ptr<HomeFile>> open(const std::string& path, const std::string& host_id);

  // Waits for a write that is under way; what has not been confirmed may be lost, and callbacks never run.
  ~HomeFile();
  HomeFile(const HomeFile&) = delete;
  HomeFile& operator=(const HomeFile&) = delete;

  // What is on disk.
  [[nodiscard]] bool has_floors() const { return durable_.floors_known(); }
  [[nodiscard]] const std::string& cluster_id() const { return durable_.cluster_id(); }
  [[nodiscard]] std::vector<home::Floor> floors() const;
  // All zero when nothing is known of the device.
  [[nodiscard]] home::Floor floor(const std::string& device) const;

  // kRefused, with why: no floors yet, a token at or below the fenced one or below the armed one. A token equal to the
  // armed one is the same grant again. Updates that are still being written count.
  [[nodiscard]] Result<void> may_arm(const std::string& device, std::uint64_t token) const;

  // Before a token is armed. Fails as may_arm does. It is to be asked again in `done`: a fence may have come since.
  void record_armed(const std::string& device, std::uint64_t token, std::uint64_t instance_counter,
                    const std::string& boot_id, Done<void> done);

  // Before a fence is confirmed: nothing at or below `token` is armed again.
  void record_fenced(const std::string& device, std::uint64_t token, Done<void> done);

  // A number for a new instance of the device, greater than every one before it on this home. `place` is kept with it.
  void next_instance(const std::string& device, const std::string& boot_id, const std::string& place,
                     Done<std::uint64_t> done);

  // The coordinator's answer to a home without floors. From here on has_floors(). Known floors are never lowered.
  void supply_floors(std::vector<SuppliedFloor> floors, Done<void> done);

  // The device is no longer managed anywhere: its floor goes.
  void forget(const std::string& device, Done<void> done);

  // kRefused when the file is of another cluster.
  void set_cluster_id(const std::string& cluster_id, Done<void> done);

  // Empty when the last write succeeded, else what is wrong and what to do.
  [[nodiscard]] const std::string& trouble() const { return trouble_; }
  [[nodiscard]] std::uint64_t writes() const { return writes_; }  // since open

 private:
  struct Applied {
    bool changed = true;
    std::uint64_t value = 0;
  };
  // A change of the state, kept so that it can be applied again on what is on disk.
  struct Update {
    std::function<Result<Applied>(home::HomeFile&)> apply;
    Done<std::uint64_t> done;
    Result<Applied> applied;
  };

  // Of a new disk.
  static home::HomeFile new_home(const std::string& host_id);
  HomeFile(std::string path, home::HomeFile home, std::unique_ptr<FileWriter> writer);
  void submit(std::function<Result<Applied>(home::HomeFile&)> apply, Done<std::uint64_t> done);
  void schedule_write();
  void start_write();
  void end_write(Result<void> result);
  void roll_back();

  const std::string path_;
  home::HomeFile durable_;  // on disk
  home::HomeFile state_;    // with every update that waits or is being written
  home::HomeFile writing_;  // what is being written
  std::deque<Update> waiting_;
  std::deque<Update> in_write_;
  bool scheduled_ = false;  // start_write is posted, or a write is under way
  std::string trouble_;
  std::uint64_t writes_ = 0;
  std::shared_ptr<HomeFile*> self_;  // what posted calls hold weakly
  std::unique_ptr<FileWriter> writer_;
};

}  // namespace usblease::host
