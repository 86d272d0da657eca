// error: keys of a rolling cache keep their positions

#include <headaware/cache/rolling_slots.hpp>
#include <headaware/cache/transfer.hpp>
#include <headaware/layout/strided.hpp>

auto turn(headaware::Transfer<float, headaware::StridedLayout, headaware::RollingSlotsView> const& transfer) {
  return transfer.rotate_keys(headaware::KeyRotation::from_base(headaware::RotaryPairing::neox, 8, 10000));
}
