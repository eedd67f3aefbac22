%% SPDX-License-Identifier: Apache-2.0
%%
%% Where the host registry is and what limits it has: from the flags and environment that the
%% epmd of OTP reads, and the application environment of chatter. Runs before any application.
-module(chatter_epmd_config).

-export([port/0, options/0, options/1]).
-export_type([options/0]).

-define(DEFAULT_PORT, 4369).

-type options() ::
        #{port := inet:port_number(),
          addresses := string(),             % as in ERL_EPMD_ADDRESS; "" is all interfaces
          relaxed := boolean(),              % KILL with live nodes, and STOP, are permitted
          request_ms := pos_integer(),       % from the accept to the last byte of the request
          max_pending := pos_integer(),      % connections that have not registered
          max_names := pos_integer(),        % names in use
          max_old_names := pos_integer(),    % names whose next creation is remembered
          debug := boolean()}.

%% @doc The port of the host registry. `-epmd_port' is what erl makes of ERL_EPMD_PORT.
-spec port() -> inet:port_number().
port() ->
    case init:get_argument(epmd_port) of
        {ok, [[Flag | _] | _]} -> port_number(Flag);
        _ -> port_number(os:getenv("ERL_EPMD_PORT", ""))
    end.

port_number(Text) ->
    try list_to_integer(Text) of
        Port when Port >= 1, Port =< 65535 -> Port;
        _ -> ?DEFAULT_PORT
    catch error:badarg -> ?DEFAULT_PORT
    end.

%% @doc The options of a registry on this host.
-spec options() -> options().
options() -> options(#{}).

%% @doc The same, some of them given.
-spec options(map()) -> options().
options(Given) ->
    maps:merge(#{port => port(),
                 addresses => os:getenv("ERL_EPMD_ADDRESS", ""),
                 relaxed => os:getenv("ERL_EPMD_RELAXED_COMMAND_CHECK") =/= false,
                 request_ms => limit(epmd_request_ms, 10000),
                 max_pending => limit(epmd_max_pending, 2000),
                 max_names => limit(epmd_max_names, 4000),
                 max_old_names => limit(epmd_max_old_names, 1000),
                 debug => false},
               Given).

limit(Key, Default) ->
    case application:get_env(chatter, Key) of
        {ok, N} when is_integer(N), N > 0 -> N;
        _ -> Default
    end.
