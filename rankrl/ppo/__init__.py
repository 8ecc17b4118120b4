from rankrl.ppo.flash import make_optional

make_optional()
