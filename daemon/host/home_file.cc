#include "daemon/host/home_file.h"

#include <algorithm>
#include <utility>

#include "common/boottime.h"
#include "common/log.h"
#include "common/main_loop.h"
#include "common/mutant.h"
#include "common/text.h"
#include "daemon/host/home_codec.h"

namespace usblease::host {
namespace {

constexpr std::size_t kBootIdBytesMax = 64;

const home::Floor* find_floor(const home::HomeFile& home, const std::string& device) {
  const auto& floors = home.floors();
  const auto found = std::find_if(floors.begin(), floors.end(), [&](const auto& f) { return f.device() == device; });
  return found != floors.end() ? &*found : nullptr;
}

Result<home::Floor*> find_or_add(home::HomeFile& home, const std::string& device) {
  auto& floors = *home.mutable_floors();
  const auto found = std::find_if(floors.begin(), floors.end(), [&](const auto& f) { return f.device() == device; });
  if (found != floors.end()) return &*found;
  if (!is_device_name(device) && !is_lock_name(device)) {
    return fail(ErrorCode::kBadInput, "\"" + escape_text(device.substr(0, 64)) + "\" is not a device name");
  }
  if (static_cast<std::size_t>(floors.size()) >= kHomeFloorsMax) {
    return fail(ErrorCode::kRefused, "this host remembers " + std::to_string(kHomeFloorsMax) +
                                         " devices, the most that are allowed; " + device + " is one too many");
  }
  home::Floor* const floor = floors.Add();
  floor->set_device(device);
  return floor;
}

Result<void> check_may_arm(const home::HomeFile& home, const std::string& device, std::uint64_t token) {
  const auto refuse = [&](const std::string& why) {
    return fail(ErrorCode::kRefused, "token " + std::to_string(token) + " of " + device + " is not armed: " + why);
  };
  if (!home.floors_known()) return refuse("this host has lost its floors and waits for the coordinator's");
  const home::Floor* const floor = find_floor(home, device);
  const std::uint64_t fenced = floor != nullptr ? floor->fenced() : 0;
  const std::uint64_t armed = floor != nullptr ? floor->armed() : 0;
  if (token <= fenced && !MUTANT(equal_token_is_armed))
    return refuse("everything up to token " + std::to_string(fenced) + " was fenced here");
  if (token < armed) return refuse("token " + std::to_string(armed) + " was armed here");
  return {};
}

HomeFile::Done<std::uint64_t> without_value(HomeFile::Done<void> done) {
  return [done = std::move(done)](Result<std::uint64_t> result) {
    if (!done) return;
    done(result ? Result<void>() : Result<void>(tl::unexpected(result.error())));
  };
}

tl::unexpected<Error> bad_boot_id() { return fail(ErrorCode::kBadInput, "a boot id is 1 to 64 bytes"); }

bool is_boot_id(const std::string& boot_id) { return !boot_id.empty() && boot_id.size() <= kBootIdBytesMax; }

}  // namespace

home::HomeFile HomeFile::new_home(const std::string& host_id) {
  home::HomeFile home;
  home.set_format(kHomeFormat);
  home.set_host_id(host_id);
  return home;
}

HomeFile::HomeFile(std::string path, home::HomeFile home, std::unique_ptr<FileWriter> writer)
    : path_(std::move(path)),
      durable_(std::move(home)),
      state_(durable_),
      self_(std::make_shared<HomeFile*>(this)),
      writer_(std::move(writer)) {}

HomeFile::~HomeFile() = default;

std::vector<home::Floor> HomeFile::floors() const { return {durable_.floors().begin(), durable_.floors().end()}; }

home::Floor HomeFile::floor(const std::string& device) const {
  const home::Floor* const found = find_floor(durable_, device);
  if (found != nullptr) return *found;
  home::Floor none;
  none.set_device(device);
  return none;
}

Result<void> HomeFile::may_arm(const std::string& device, std::uint64_t token) const {
  // Both: what waits to be fenced counts already, what waits to be supplied or forgotten does not count yet.
  if (auto durable = check_may_arm(durable_, device, token); !durable) return durable;
  return check_may_arm(state_, device, token);
}

void HomeFile::record_armed(const std::string& device, std::uint64_t token, std::uint64_t instance_counter,
                            const std::string& boot_id, Done<void> done) {
  submit(
      [=](home::HomeFile& home) -> Result<Applied> {
        if (!is_boot_id(boot_id)) return bad_boot_id();
        if (auto allowed = check_may_arm(home, device, token); !allowed) return tl::unexpected(allowed.error());
        auto floor = find_or_add(home, device);
        if (!floor) return tl::unexpected(floor.error());
        home::Floor& of = **floor;
        if (of.boot_id() == boot_id && instance_counter < of.instance()) {
          return fail(ErrorCode::kRefused, "token " + std::to_string(token) + " of " + device +
                                               " is not armed: it is for an earlier instance of the device");
        }
        const bool same = of.armed() == token && of.instance() == instance_counter && of.boot_id() == boot_id;
        of.set_armed(token);
        of.set_instance(instance_counter);
        of.set_boot_id(boot_id);
        home.set_instance_counter(std::max(home.instance_counter(), instance_counter));
        return Applied{!same, 0};
      },
      without_value(std::move(done)));
}

void HomeFile::record_fenced(const std::string& device, std::uint64_t token, Done<void> done) {
  submit(
      [=](home::HomeFile& home) -> Result<Applied> {
        auto floor = find_or_add(home, device);
        if (!floor) return tl::unexpected(floor.error());
        if ((*floor)->fenced() >= token) return Applied{false, 0};
        if (!MUTANT(floor_is_not_raised)) (*floor)->set_fenced(token);
        return Applied{true, 0};
      },
      without_value(std::move(done)));
}

void HomeFile::next_instance(const std::string& device, const std::string& boot_id, const std::string& place,
                             Done<std::uint64_t> done) {
  submit(
      [=](home::HomeFile& home) -> Result<Applied> {
        if (!is_boot_id(boot_id)) return bad_boot_id();
        auto floor = find_or_add(home, device);
        if (!floor) return tl::unexpected(floor.error());
        // An instance is named by boot and number. Each boot's numbers begin with its milliseconds and grow slower than
        // those pass, so that a file that is lost makes no number of this boot come again.
        if (home.instance_boot_id() != boot_id) home.set_instance_counter(boottime_now_ns() / 1'000'000);
        home.set_instance_boot_id(boot_id);
        home.set_instance_counter(home.instance_counter() + 1);
        (*floor)->set_instance(home.instance_counter());
        (*floor)->set_boot_id(boot_id);
        (*floor)->set_place(place);
        return Applied{true, home.instance_counter()};
      },
      std::move(done));
}

void HomeFile::supply_floors(std::vector<SuppliedFloor> floors, Done<void> done) {
  submit(
      [floors = std::move(floors)](home::HomeFile& home) -> Result<Applied> {
        home::HomeFile supplied = home;
        for (const SuppliedFloor& from : floors) {
          auto floor = find_or_add(supplied, from.device);
          if (!floor) return tl::unexpected(floor.error());
          (*floor)->set_fenced(std::max((*floor)->fenced(), from.floor));
          if (from.armed <= (*floor)->armed()) continue;
          (*floor)->set_armed(from.armed);
          if ((*floor)->instance() != 0) continue;
          (*floor)->set_instance(from.instance);
          (*floor)->set_boot_id(from.boot_id);
        }
        supplied.set_floors_known(true);
        home = std::move(supplied);
        return Applied{true, 0};
      },
      without_value(std::move(done)));
}

void HomeFile::forget(const std::string& device, Done<void> done) {
  submit(
      [=](home::HomeFile& home) -> Result<Applied> {
        auto& floors = *home.mutable_floors();
        const auto gone =
            std::find_if(floors.begin(), floors.end(), [&](const auto& f) { return f.device() == device; });
        if (gone == floors.end()) return Applied{false, 0};
        floors.erase(gone);
        return Applied{true, 0};
      },
      without_value(std::move(done)));
}

void HomeFile::set_cluster_id(const std::string& cluster_id, Done<void> done) {
  submit(
      [=, path = path_](home::HomeFile& home) -> Result<Applied> {
        if (home.cluster_id() == cluster_id) return Applied{false, 0};
        if (!is_identifier(cluster_id)) return fail(ErrorCode::kBadInput, "a cluster id is 1 to 64 of [A-Za-z0-9._-]");
        if (!home.cluster_id().empty()) {
          return fail(ErrorCode::kRefused, path + " belongs to cluster " + escape_text(home.cluster_id()) +
                                               ", the store to cluster " + cluster_id +
                                               ": give this host the store of" +
                                               " its cluster back, or, if it is to join the other one, move the file" +
                                               " away and start again");
        }
        home.set_cluster_id(cluster_id);
        return Applied{true, 0};
      },
      without_value(std::move(done)));
}

void HomeFile::submit(std::function<Result<Applied>(home::HomeFile&)> apply, Done<std::uint64_t> done) {
  auto applied = apply(state_);
  waiting_.push_back({std::move(apply), std::move(done), std::move(applied)});
  if (!scheduled_) schedule_write();
}

void HomeFile::schedule_write() {
  scheduled_ = true;
  // Not at once: what the same turn of the main loop still brings goes into the same write.
  post([self = std::weak_ptr<HomeFile*>(self_)] {
    if (const auto home = self.lock()) (*home)->start_write();
  });
}

void HomeFile::start_write() {
  in_write_ = std::exchange(waiting_, {});
  const bool changed = std::any_of(in_write_.begin(), in_write_.end(),
                                   [](const Update& update) { return update.applied && update.applied->changed; });
  writing_ = state_;
  if (!changed) return end_write({});
  ++writes_;
  writer_->write(encode_home(writing_), [this](Result<void> result) {
    const std::string before = std::exchange(trouble_, result ? "" : result.error().message);
    if (!result && before != trouble_) log::error("cannot write " + path_, {{"ERROR", trouble_}});
    if (result && !before.empty()) log::info(path_ + " can be written again");
    if (result) durable_ = writing_;
    end_write(std::move(result));
  });
}

void HomeFile::end_write(Result<void> result) {
  auto ended = std::exchange(in_write_, {});
  if (!result) {
    for (auto& update : ended) {
      if (!update.applied) continue;
      // What was on disk before is no lie.
      home::HomeFile copy = durable_;
      update.applied = update.apply(copy);
      if (update.applied && update.applied->changed) update.applied = tl::unexpected(result.error());
    }
    roll_back();
  }
  scheduled_ = false;
  if (!waiting_.empty()) schedule_write();
  // From here on a callback may have destroyed this object.
  for (auto& update : ended) {
    if (!update.done) continue;
    update.done(update.applied ? Result<std::uint64_t>(update.applied->value)
                               : Result<std::uint64_t>(tl::unexpected(update.applied.error())));
  }
}

void HomeFile::roll_back() {
  state_ = durable_;
  for (auto& update : waiting_) update.applied = update.apply(state_);
}

}  // namespace usblease::host
