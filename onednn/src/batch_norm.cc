// BatchNorm with ReLU, and its gradient, as handlers for XLA on CPUs: two passes over a map each.
//
// A map is taken as one row of numbers in which the channels recur, so that a loop is as long for 8
// channels as for 256. It is divided into parts whose size is constant, whatever the number of
// threads: so then is the order of its sums, and every value to the bit.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <vector>

#include "parallel.h"
#include "xla/ffi/api/ffi.h"

// A copy of a function per instruction set, of which the loader takes the best that the CPU has.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define PER_CPU __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define PER_CPU
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;

constexpr int64_t kLanes = 256;      // at least so many numbers per turn of a loop
constexpr int64_t kPart = 1 << 16;   // and about so many per call of a thread

struct BFloat16 {
  uint16_t bits;
};

INLINE float Load(float value) { return value; }
INLINE float Load(BFloat16 value) {
  const uint32_t bits = uint32_t{value.bits} << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

INLINE void Store(float value, float& place) { place = value; }
INLINE void Store(float value, BFloat16& place) {  // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  place.bits = value != value ? 0x7fc0 : rounded;
}

// The gradient before ReLU. A y that is no number passes none, as jnp.where(y > 0, gradient, 0).
template <typename T>
INLINE float Passed(T gradient, T y) {
  return Load(y) > 0 ? Load(gradient) : 0;
}

// The four loops take numbers `from` to `to` of a map, and have one number per lane.

template <typename T>
INLINE void AddSums(const T* __restrict x, int64_t from, int64_t to, int64_t lanes,
                    float* __restrict sum, float* __restrict squares) {
  for (; from < to; from += lanes) {
    const int64_t count = std::min(lanes, to - from);
    for (int64_t lane = 0; lane < count; ++lane) {
      const float value = Load(x[from + lane]);
      sum[lane] += value;
      squares[lane] += value * value;
    }
  }
}

template <typename T>
INLINE void Normalize(const T* __restrict x, int64_t from, int64_t to, int64_t lanes,
                      const float* __restrict factor, const float* __restrict offset,
                      T* __restrict y) {
  for (; from < to; from += lanes) {
    const int64_t count = std::min(lanes, to - from);
    for (int64_t lane = 0; lane < count; ++lane) {
      const float value = Load(x[from + lane]) * factor[lane] + offset[lane];
      Store(value < 0 ? 0 : value, y[from + lane]);  // what is no number stays so
    }
  }
}

template <typename T>
INLINE void AddGradientSums(const T* __restrict gradient, const T* __restrict x,
                            const T* __restrict y, int64_t from, int64_t to, int64_t lanes,
                            float* __restrict sum, float* __restrict products) {
  for (; from < to; from += lanes) {
    const int64_t count = std::min(lanes, to - from);
    for (int64_t lane = 0; lane < count; ++lane) {
      const float passed = Passed(gradient[from + lane], y[from + lane]);
      sum[lane] += passed;
      products[lane] += passed * Load(x[from + lane]);
    }
  }
}

template <typename T>
INLINE void XGradient(const T* __restrict gradient, const T* __restrict x, const T* __restrict y,
                      int64_t from, int64_t to, int64_t lanes, const float* __restrict factor,
                      const float* __restrict slope, const float* __restrict offset,
                      T* __restrict x_gradient) {
  for (; from < to; from += lanes) {
    const int64_t count = std::min(lanes, to - from);
    for (int64_t lane = 0; lane < count; ++lane) {
      const float passed = Passed(gradient[from + lane], y[from + lane]);
      const float value = passed * factor[lane] + Load(x[from + lane]) * slope[lane];
      Store(value + offset[lane], x_gradient[from + lane]);
    }
  }
}

// Copies per instruction set are made of functions alone, not of templates.
#define COPIES(T)                                                                                \
  PER_CPU void AddSumsOf(const T* x, int64_t from, int64_t to, int64_t lanes, float* sum,        \
                         float* squares) {                                                       \
    AddSums(x, from, to, lanes, sum, squares);                                                   \
  }                                                                                              \
  PER_CPU void NormalizeOf(const T* x, int64_t from, int64_t to, int64_t lanes,                  \
                           const float* factor, const float* offset, T* y) {                     \
    Normalize(x, from, to, lanes, factor, offset, y);                                            \
  }                                                                                              \
  PER_CPU void AddGradientSumsOf(const T* gradient, const T* x, const T* y, int64_t from,        \
                                 int64_t to, int64_t lanes, float* sum, float* products) {       \
    AddGradientSums(gradient, x, y, from, to, lanes, sum, products);                             \
  }                                                                                              \
  PER_CPU void XGradientOf(const T* gradient, const T* x, const T* y, int64_t from, int64_t to,  \
                           int64_t lanes, const float* factor, const float* slope,               \
                           const float* offset, T* x_gradient) {                                 \
    XGradient(gradient, x, y, from, to, lanes, factor, slope, offset, x_gradient);               \
  }
COPIES(float)
COPIES(BFloat16)
#undef COPIES

// A map in parts.
class Map {
 public:
  Map(ffi::ThreadPool& pool, int64_t numbers, int64_t channels)
      : pool_(pool), numbers_(numbers), channels_(channels), lanes_(channels) {
    while (lanes_ < kLanes) lanes_ += channels;
    part_ = std::max(kPart / lanes_, int64_t{1}) * lanes_;
    parts_ = (numbers + part_ - 1) / part_;
  }

  // Calls function(from, to, lanes) for each part, on any thread.
  template <typename Function>
  void Each(const Function& function) {
    Parallel(pool_, parts_, [&](int64_t i) {
      function(i * part_, std::min((i + 1) * part_, numbers_), lanes_);
    });
  }

  // Two sums per channel: function(from, to, lanes, first, second) adds a part's, lane by lane.
  template <typename Function>
  std::vector<std::pair<double, double>> Sum(const Function& function) {
    std::vector<float> lanes(2 * lanes_ * parts_);
    Each([&](int64_t from, int64_t to, int64_t) {
      float* const first = lanes.data() + 2 * lanes_ * (from / part_);
      function(from, to, lanes_, first, first + lanes_);
    });
    std::vector<std::pair<double, double>> sums(channels_);
    for (int64_t part = 0; part < parts_; ++part) {
      const float* const first = lanes.data() + 2 * lanes_ * part;
      for (int64_t lane = 0; lane < lanes_; ++lane) {
        auto& [sum, other] = sums[lane % channels_];
        sum += first[lane];
        other += first[lanes_ + lane];
      }
    }
    return sums;
  }

  // Values per channel, repeated for all lanes.
  template <typename Function>
  std::vector<float> PerLane(const Function& function) const {
    std::vector<float> values(lanes_);
    for (int64_t lane = 0; lane < lanes_; ++lane) values[lane] = function(lane % channels_);
    return values;
  }

  double pixels() const { return static_cast<double>(numbers_ / channels_); }

 private:
  ffi::ThreadPool& pool_;
  int64_t numbers_, channels_, lanes_, part_, parts_;
};

double Deviation(float var, float epsilon) { return std::sqrt(double{var} + epsilon); }

template <typename T>
void Forward(Map map, float epsilon, const T* x, const float* scale, const float* bias, T* y,
             float* mean, float* var) {
  const auto sums = map.Sum([x](int64_t from, int64_t to, int64_t lanes, float* sum,
                                float* squares) { AddSumsOf(x, from, to, lanes, sum, squares); });
  for (size_t i = 0; i < sums.size(); ++i) {
    const double average = sums[i].first / map.pixels();
    const double variance = sums[i].second / map.pixels() - average * average;
    mean[i] = static_cast<float>(average);
    var[i] = static_cast<float>(variance < 0 ? 0 : variance);
  }
  const auto factor = map.PerLane([&](int64_t i) { return scale[i] / Deviation(var[i], epsilon); });
  const auto offset = map.PerLane([&](int64_t i) {
    return bias[i] - mean[i] * (scale[i] / Deviation(var[i], epsilon));
  });
  map.Each([&](int64_t from, int64_t to, int64_t lanes) {
    NormalizeOf(x, from, to, lanes, factor.data(), offset.data(), y);
  });
}

template <typename T>
void Backward(Map map, float epsilon, const T* gradient, const T* x, const T* y, const float* mean,
              const float* var, const float* scale, T* x_gradient, float* scale_gradient,
              float* bias_gradient) {
  const auto sums = map.Sum([=](int64_t from, int64_t to, int64_t lanes, float* sum,
                                float* products) {
    AddGradientSumsOf(gradient, x, y, from, to, lanes, sum, products);
  });
  std::vector<double> factors(sums.size()), slopes(sums.size()), offsets(sums.size());
  for (size_t i = 0; i < sums.size(); ++i) {
    const double deviation = Deviation(var[i], epsilon);
    const double centred = (sums[i].second - sums[i].first * mean[i]) / deviation;
    scale_gradient[i] = static_cast<float>(centred);
    bias_gradient[i] = static_cast<float>(sums[i].first);
    factors[i] = scale[i] / deviation;
    slopes[i] = -factors[i] * centred / (deviation * map.pixels());
    offsets[i] = -factors[i] * sums[i].first / map.pixels() - mean[i] * slopes[i];
  }
  const auto factor = map.PerLane([&](int64_t i) { return factors[i]; });
  const auto slope = map.PerLane([&](int64_t i) { return slopes[i]; });
  const auto offset = map.PerLane([&](int64_t i) { return offsets[i]; });
  map.Each([&](int64_t from, int64_t to, int64_t lanes) {
    XGradientOf(gradient, x, y, from, to, lanes, factor.data(), slope.data(), offset.data(),
               x_gradient);
  });
}

// Calls function(map, a null T*) for the type of `x`, and returns every error to XLA.
template <typename Function>
ffi::Error Handle(ffi::ThreadPool& pool, ffi::AnyBuffer x, std::vector<Floats> per_channel,
                  std::vector<ffi::AnyBuffer> maps, const Function& function) {
  const int64_t numbers = x.element_count();
  const int64_t channels = x.dimensions().size() == 0 ? 0 : x.dimensions().back();
  bool fits = numbers > 0;
  for (const auto& values : per_channel) {
    fits &= static_cast<int64_t>(values.element_count()) == channels;
  }
  for (const auto& map : maps) {
    fits &= static_cast<int64_t>(map.element_count()) == numbers;
    fits &= map.element_type() == x.element_type();
  }
  if (!fits) return ffi::Error::InvalidArgument("the shapes or dtypes are not those of a BatchNorm");
  try {
    if (x.element_type() == ffi::F32) {
      function(Map(pool, numbers, channels), static_cast<float*>(nullptr));
    } else if (x.element_type() == ffi::BF16) {
      function(Map(pool, numbers, channels), static_cast<BFloat16*>(nullptr));
    } else {
      return ffi::Error::InvalidArgument("the dtype is neither float32 nor bfloat16");
    }
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for BatchNorm's sums");
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("BatchNorm: ") + error.what());
  }
  return ffi::Error::Success();
}

using MapResult = ffi::Result<ffi::AnyBuffer>;
using FloatsResult = ffi::Result<Floats>;

ffi::Error Normalization(float epsilon, ffi::ThreadPool pool, ffi::AnyBuffer x, Floats scale,
                         Floats bias, MapResult y, FloatsResult mean, FloatsResult var) {
  return Handle(pool, x, {scale, bias, *mean, *var}, {*y}, [&](Map map, auto* type) {
    using T = decltype(type);
    Forward(map, epsilon, static_cast<T>(x.untyped_data()), scale.typed_data(), bias.typed_data(),
            static_cast<T>(y->untyped_data()), mean->typed_data(), var->typed_data());
  });
}

ffi::Error NormalizationGradient(float epsilon, ffi::ThreadPool pool, ffi::AnyBuffer gradient,
                                 ffi::AnyBuffer x, ffi::AnyBuffer y, Floats mean, Floats var,
                                 Floats scale, MapResult x_gradient, FloatsResult scale_gradient,
                                 FloatsResult bias_gradient) {
  return Handle(pool, x, {mean, var, scale, *scale_gradient, *bias_gradient},
                {gradient, y, *x_gradient}, [&](Map map, auto* type) {
                  using T = decltype(type);
                  Backward(map, epsilon, static_cast<T>(gradient.untyped_data()),
                           static_cast<T>(x.untyped_data()), static_cast<T>(y.untyped_data()),
                           mean.typed_data(), var.typed_data(), scale.typed_data(),
                           static_cast<T>(x_gradient->untyped_data()),
                           scale_gradient->typed_data(), bias_gradient->typed_data());
                });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(batch_norm_relu, Normalization,
                              ffi::Ffi::Bind()
                                  .Attr<float>("epsilon")
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(batch_norm_relu_gradient, NormalizationGradient,
                              ffi::Ffi::Bind()
                                  .Attr<float>("epsilon")
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());
