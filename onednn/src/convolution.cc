// oneDNN's 3x3 convolution and its two gradients as handlers for XLA on CPUs.
//
// The batch is divided among XLA's own threads, each of which calls oneDNN for its images with a
// single OpenMP thread: two pools of threads on the same cores would wait for each other.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <oneapi/dnnl/dnnl.hpp>
#include <tuple>
#include <vector>

#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using dnnl::memory;
using Buffer = ffi::AnyBuffer;
using Output = ffi::Result<ffi::AnyBuffer>;

enum class Pass { kForward, kInputGradient, kKernelGradient };

// Images that a thread takes at a time. Smaller parts cost up to 5 % more on one core. That of the
// kernel's gradient is constant, whatever the number of threads: so then is the order of its sum,
// and its value to the bit. The other two passes have the same bits by any division.
constexpr int64_t kImages = 16;
// Parts whose kernel gradients are held at once: beyond a batch of 272, memory stays the same.
constexpr int64_t kHeld = 16;
constexpr size_t kAlignment = 64;
constexpr size_t kMostPlans = 1024;

dnnl::engine& Engine() {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

// One OpenMP thread for oneDNN while this lives; other users of this thread keep their number.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }

 private:
  int before_;
};

struct Shape {
  Pass pass;
  memory::data_type type;
  int64_t images, height, width, channels_in, channels_out, stride;

  int64_t rows() const { return (height - 1) / stride + 1; }
  int64_t columns() const { return (width - 1) / stride + 1; }
  auto key() const {
    return std::make_tuple(pass, type, images, height, width, channels_in, channels_out, stride);
  }
};

// What oneDNN has compiled for a shape. `kernel` is in the layout that it chose, `user_kernel` in
// XLA's; the kernel's gradient is summed in float32.
struct Plan {
  dnnl::primitive convolution, reorder;
  memory::desc x, y, kernel, user_kernel, scratch;

  explicit Plan(const Shape& s) {
    using tag = memory::format_tag;
    const bool sums = s.pass == Pass::kKernelGradient;
    const memory::dims kernel_dims{s.channels_out, s.channels_in, 3, 3};
    x = memory::desc({s.images, s.channels_in, s.height, s.width}, s.type, tag::nhwc);
    y = memory::desc({s.images, s.channels_out, s.rows(), s.columns()}, s.type, tag::nhwc);
    user_kernel = memory::desc(kernel_dims, s.type, tag::hwio);
    const memory::desc any(kernel_dims, s.type, tag::any);
    // A single column has one output at either stride. At 2, oneDNN 3.2 leaves its kernel's gradient
    // in bfloat16 unwritten.
    const memory::dims strides{s.stride, s.width == 1 ? 1 : s.stride}, before{1, 1};
    const memory::dims after{(s.rows() - 1) * strides[0] + 2 - s.height,
                             (s.columns() - 1) * strides[1] + 2 - s.width};
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    const auto algorithm = dnnl::algorithm::convolution_direct;
    const dnnl::convolution_forward::primitive_desc forward(
        Engine(), dnnl::prop_kind::forward_training, algorithm, x, any, y, strides, before, after,
        attributes);
    if (s.pass == Pass::kForward) {
      Take(dnnl::convolution_forward(forward), forward, forward.weights_desc());
    } else if (s.pass == Pass::kInputGradient) {
      const dnnl::convolution_backward_data::primitive_desc backward(
          Engine(), algorithm, x, any, y, strides, before, after, forward, attributes);
      Take(dnnl::convolution_backward_data(backward), backward, backward.weights_desc());
    } else {
      const memory::desc sum(kernel_dims, memory::data_type::f32, tag::any);
      const dnnl::convolution_backward_weights::primitive_desc backward(
          Engine(), algorithm, x, sum, y, strides, before, after, forward, attributes);
      Take(dnnl::convolution_backward_weights(backward), backward, backward.diff_weights_desc());
    }
    if (reorders()) {
      const auto& from = sums ? kernel : user_kernel;
      const auto& to = sums ? user_kernel : kernel;
      reorder = dnnl::reorder(dnnl::reorder::primitive_desc(Engine(), from, Engine(), to));
    }
  }

  bool reorders() const { return kernel != user_kernel; }

 private:
  void Take(dnnl::primitive primitive, const dnnl::primitive_desc& description, memory::desc layout) {
    convolution = std::move(primitive);
    kernel = std::move(layout);
    scratch = description.scratchpad_desc();
  }
};

std::shared_ptr<const Plan> PlanFor(const Shape& shape) {
  static std::mutex mutex;
  static auto* plans = new std::map<decltype(shape.key()), std::shared_ptr<const Plan>>;
  std::lock_guard<std::mutex> lock(mutex);
  if (plans->size() >= kMostPlans) plans->clear();  // those in use live on in their calls
  auto& plan = (*plans)[shape.key()];
  if (plan == nullptr) plan = std::make_shared<const Plan>(shape);
  return plan;
}

// Memory of one call.
class Scratch {
 public:
  char* Allocate(size_t bytes) {
    if (bytes == 0) return nullptr;
    blocks_.emplace_back(std::aligned_alloc(kAlignment, Aligned(bytes)), &std::free);
    if (blocks_.back() == nullptr) throw std::bad_alloc();
    return static_cast<char*>(blocks_.back().get());
  }

  static size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

 private:
  std::vector<std::unique_ptr<void, decltype(&std::free)>> blocks_;
};

void Execute(const dnnl::primitive& primitive, const std::unordered_map<int, memory>& arguments) {
  dnnl::stream stream(Engine());
  primitive.execute(stream, arguments);
  stream.wait();
}

void Reorder(const memory& from, const memory& to) {
  Execute(dnnl::reorder(from, to), {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}});
}

void Convolve(const Shape& whole, ffi::ThreadPool& pool, char* x, char* y, char* kernel) {
  const bool sums = whole.pass == Pass::kKernelGradient;
  const int64_t threads = std::max<int64_t>(pool.num_threads(), 1);
  const int64_t share = (whole.images + threads - 1) / threads;
  const int64_t images = std::min(sums ? whole.images : share, kImages);
  const int64_t parts = (whole.images + images - 1) / images;
  Shape part = whole, rest = whole;
  part.images = images;
  rest.images = whole.images - (parts - 1) * images;

  const OneThread one_thread;
  const auto plan = PlanFor(part), last = PlanFor(rest);
  const size_t bytes = memory::data_type_size(whole.type);
  const size_t x_bytes = images * whole.height * whole.width * whole.channels_in * bytes;
  const size_t y_bytes = images * whole.rows() * whole.columns() * whole.channels_out * bytes;
  const size_t kernel_bytes = Scratch::Aligned(plan->kernel.get_size());
  const size_t scratch_bytes =
      Scratch::Aligned(std::max(plan->scratch.get_size(), last->scratch.get_size()));

  // The first part's kernel gradient is the sum; the others, held in turns, are added in order.
  const int64_t held = sums ? std::min(parts - 1, kHeld) : parts;
  const auto place = [&](int64_t i) { return sums && i > 0 ? (i - 1) % held + 1 : i; };

  Scratch scratch;
  const bool in_place = !plan->reorders() && (parts == 1 || !sums);
  char* const kernels = in_place ? kernel : scratch.Allocate(kernel_bytes * (sums ? held + 1 : 1));
  char* const scratches = scratch.Allocate(scratch_bytes * (sums ? held + 1 : parts));
  const memory xlas(plan->user_kernel, Engine(), kernel);
  const memory ours(plan->kernel, Engine(), kernels);
  if (!sums && !in_place) {
    Execute(plan->reorder, {{DNNL_ARG_FROM, xlas}, {DNNL_ARG_TO, ours}});
  }
  // For few images oneDNN may choose another layout of the kernel, as on CPUs with AMX.
  const bool apart = plan->kernel != last->kernel;
  char* const lasts = apart ? scratch.Allocate(last->kernel.get_size()) : nullptr;
  if (!sums && apart) Reorder(xlas, memory(last->kernel, Engine(), lasts));
  const int x_name = whole.pass == Pass::kInputGradient ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC;
  const int y_name = whole.pass == Pass::kForward ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST;
  const int kernel_name = sums ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS;
  const auto convolve = [&](int64_t i) {
    const OneThread one_thread;
    const Plan& own = i + 1 == parts ? *last : *plan;
    const bool is_apart = apart && i + 1 == parts;
    char* const shared = kernels + (sums ? place(i) * kernel_bytes : 0);
    char* const own_kernel = is_apart ? lasts : shared;
    char* const own_scratch = scratches + place(i) * scratch_bytes;
    Execute(own.convolution, {{x_name, memory(own.x, Engine(), x + i * x_bytes)},
                              {y_name, memory(own.y, Engine(), y + i * y_bytes)},
                              {kernel_name, memory(own.kernel, Engine(), own_kernel)},
                              {DNNL_ARG_SCRATCHPAD, memory(own.scratch, Engine(), own_scratch)}});
    if (sums && is_apart) {
      Reorder(memory(own.kernel, Engine(), lasts), memory(plan->kernel, Engine(), shared));
    }
  };
  if (!sums || in_place) return Parallel(pool, parts, convolve);
  auto* const __restrict sum = reinterpret_cast<float*>(kernels);
  const size_t numbers = plan->kernel.get_size() / sizeof(float);  // not asked for each of them
  for (int64_t from = 0, to; from < parts; from = to) {
    to = std::min(parts, from == 0 ? held + 1 : from + held);
    Parallel(pool, to - from, [&](int64_t i) { convolve(from + i); });
    for (int64_t i = std::max<int64_t>(from, 1); i < to; ++i) {
      const auto* const __restrict term =
          reinterpret_cast<const float*>(kernels + place(i) * kernel_bytes);
      for (size_t j = 0; j < numbers; ++j) sum[j] += term[j];
    }
  }
  if (plan->reorders()) {
    Execute(plan->reorder, {{DNNL_ARG_FROM, ours}, {DNNL_ARG_TO, xlas}});
  } else {
    std::memcpy(kernel, kernels, plan->kernel.get_size());
  }
}

// Checks what it is given, and returns every error to XLA.
ffi::Error Handle(Pass pass, int64_t stride, ffi::ThreadPool& pool, Buffer& x, Buffer& y,
                  Buffer& kernel, Buffer& output) {
  const auto xs = x.dimensions(), ys = y.dimensions(), ks = kernel.dimensions();
  const auto type = x.element_type();
  if (xs.size() != 4 || ys.size() != 4 || ks.size() != 4 || ks[0] != 3 || ks[1] != 3 ||
      ks[2] != xs[3] || ks[3] != ys[3] || ys[0] != xs[0] || (stride != 1 && stride != 2) ||
      ys[1] != (xs[1] + stride - 1) / stride || ys[2] != (xs[2] + stride - 1) / stride) {
    return ffi::Error::InvalidArgument("the shapes are not those of a 3x3 convolution");
  }
  if (y.element_type() != type || kernel.element_type() != type ||
      (type != ffi::F32 && type != ffi::BF16)) {
    return ffi::Error::InvalidArgument("the dtypes are not all float32 or all bfloat16");
  }
  // Not the product of the three, which may be 2 to the 64.
  if (x.element_count() == 0 || y.element_count() == 0 || kernel.element_count() == 0) {
    std::memset(output.untyped_data(), 0, output.size_bytes());
    return ffi::Error::Success();
  }
  const auto dnnl_type = type == ffi::F32 ? memory::data_type::f32 : memory::data_type::bf16;
  try {
    Convolve({pass, dnnl_type, xs[0], xs[1], xs[2], xs[3], ys[3], stride}, pool,
             static_cast<char*>(x.untyped_data()), static_cast<char*>(y.untyped_data()),
             static_cast<char*>(kernel.untyped_data()));
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for oneDNN's convolution");
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
  }
  return ffi::Error::Success();
}

ffi::Error Forward(int64_t stride, ffi::ThreadPool pool, Buffer x, Buffer kernel, Output y) {
  return Handle(Pass::kForward, stride, pool, x, *y, kernel, *y);
}

ffi::Error InputGradient(int64_t stride, ffi::ThreadPool pool, Buffer y, Buffer kernel, Output x) {
  return Handle(Pass::kInputGradient, stride, pool, *x, y, kernel, *x);
}

ffi::Error KernelGradient(int64_t stride, ffi::ThreadPool pool, Buffer x, Buffer y, Output kernel) {
  return Handle(Pass::kKernelGradient, stride, pool, x, y, *kernel, *kernel);
}

auto Binding() {
  return ffi::Ffi::Bind()
      .Attr<int64_t>("stride")
      .Ctx<ffi::ThreadPool>()
      .Arg<Buffer>()
      .Arg<Buffer>()
      .Ret<Buffer>();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(forward, Forward, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(input_gradient, InputGradient, Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(kernel_gradient, KernelGradient, Binding());

// Whether this CPU multiplies bfloat16 itself.
extern "C" int has_bfloat16() {
  const int bfloat16 = static_cast<int>(dnnl::cpu_isa::avx512_core_bf16);
  return (static_cast<int>(dnnl::get_effective_cpu_isa()) & bfloat16) == bfloat16;
}

// Whether it is to be taken to do so about twice as fast as float32: AMD's (measured), and those with
// tiles (AMX; not tried). A Xeon without tiles was measured to be no faster than in float32.
extern "C" int has_fast_bfloat16() {
  const int tiles = static_cast<int>(dnnl::cpu_isa::avx512_core_amx);
  const bool has_tiles = (static_cast<int>(dnnl::get_effective_cpu_isa()) & tiles) == tiles;
#if defined(__x86_64__) && defined(__GNUC__)
  return has_bfloat16() && (has_tiles || __builtin_cpu_is("amd"));
#else
  return has_bfloat16() && has_tiles;
#endif
}
